"""ControlKit's panel in AUTOMATIC1111's web UI, Forge and SD.Next, which import every file of this folder.

The package lies beside the folder, whose place is on ``sys.path`` while this file is imported.
"""

import importlib
import importlib.util

FORGE = importlib.util.find_spec("modules_forge") is not None
SDNEXT = importlib.util.find_spec("modules.scripts_manager") is not None
scripts = importlib.import_module("modules.scripts")
callbacks = importlib.import_module("modules.script_callbacks")
webui = importlib.import_module(f"controlkit.hosts.webui.{'sdnext' if SDNEXT else 'script'}")
FRONT = importlib.import_module("controlkit.hosts.forge.script").Front() if FORGE else webui.Front()


class ControlKit(webui.Panel, scripts.Script):
    """The panel, on both tabs."""

    front = FRONT


if FORGE:
    importlib.import_module("controlkit.hosts.forge.panel").register()
callbacks.on_cfg_denoiser(FRONT.denoising)
callbacks.on_script_unloaded(FRONT.release)
if SDNEXT:
    callbacks.on_after_process(FRONT.ended)
