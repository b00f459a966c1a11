"""ComfyUI: our controls as its CONTROL_NET, MODEL and CONDITIONING, and the nodes that make them.

The nodes are imported when they are asked for, which is inside ComfyUI alone, by the file ``__init__.py`` at
the top of the repository; see docs/comfyui.md. What needs no ComfyUI (`unet`, `layout`, `clock`, `running`)
can be imported anywhere.
"""

from __future__ import annotations

from typing import Any

_NODES = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")


def __getattr__(name: str) -> Any:
    if name not in _NODES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from controlkit.hosts.comfy import registry

    return getattr(registry, name)
