"""The repository as an extension: ComfyUI and InvokeAI import this file, and nothing else needs it.

The package is the folder ``controlkit`` beside it. This file must import nothing heavy where there is none of
the two: test runners import it too, under the name of the clone.
"""

import sys
from importlib import import_module
from pathlib import Path

_HERE = Path(__file__).resolve().parent

if __name__ == "controlkit":
    # A clone that is called controlkit was found in the place of the package inside it: become that package.
    _inner = _HERE / "controlkit" / "__init__.py"
    __path__ = [str(_inner.parent)]
    __file__ = str(_inner)
    exec(compile(_inner.read_text(encoding="utf-8"), str(_inner), "exec"))
elif {"folder_paths", "invokeai"} & set(sys.modules) and str(_HERE) not in sys.path:
    sys.path.append(str(_HERE))  # last: nothing of the host's is hidden

if "folder_paths" in sys.modules and __name__ != "controlkit":  # ComfyUI, whose module it is
    from controlkit.hosts.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
elif "invokeai" in sys.modules:  # whose node packs are modules by the names of their folders
    import_module("controlkit.hosts.invoke").load(__name__)
