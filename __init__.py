"""The repository as an extension of a web UI: ComfyUI imports this file, and nothing else needs it.

The package is the folder ``controlkit`` beside it. This file must import nothing heavy where there is no
ComfyUI: test runners import it too, under the name of the clone.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent

if __name__ == "controlkit":
    # A clone that is called controlkit was found in the place of the package inside it: become that package.
    _inner = _HERE / "controlkit" / "__init__.py"
    __path__ = [str(_inner.parent)]
    __file__ = str(_inner)
    exec(compile(_inner.read_text(encoding="utf-8"), str(_inner), "exec"))
elif "folder_paths" in sys.modules:  # ComfyUI, whose module it is
    if str(_HERE) not in sys.path:
        sys.path.append(str(_HERE))  # last: nothing of the host's is hidden
    from controlkit.hosts.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
