"""InvokeAI: a node per detector, checks of maps, and pictures from recipes, in its workflow editor and queue.

The file ``__init__.py`` at the top of the repository calls `load` when InvokeAI imports the clone as a node
pack; see docs/invokeai.md. Of InvokeAI only ``invokeai.invocation_api`` is used, its interface for packs.

| file | answers |
| --- | --- |
| ``registry.py`` | which nodes are there? |
| ``building.py`` | how is a node class made? |
| ``detectors.py`` | what do the detectors' nodes look like, and what do they do? |
| ``maps.py`` | can this map be right, and which recipe does this picture carry? |
| ``controls.py`` | what goes from a control's node to the one that makes the picture? |
| ``generating.py`` | how is the picture made, watched, cancelled and put into the gallery? |

Only ``host.py`` imports InvokeAI, so that the rest can be imported and tested anywhere.
"""

from __future__ import annotations

from typing import Any


def load(pack: str) -> list[Any]:
    """Register our nodes with InvokeAI, as those of the pack of this name; once for each load of the pack.

    Args:
        pack: Name of the pack's module, which is that of its folder.

    Returns:
        The classes of the nodes.
    """
    from controlkit.hosts.invoke.registry import load

    return load(pack)
