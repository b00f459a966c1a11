"""ControlKit's panel in AUTOMATIC1111's web UI, which imports every file of this folder.

The package lies beside the folder, whose place is on ``sys.path`` while this file is imported.
"""

import importlib
import importlib.util
import logging

if importlib.util.find_spec("modules_forge") is not None:
    # Its models are made of other parts; a panel that does nothing there would be worse than none.
    logging.getLogger("controlkit").warning("ControlKit: the panel does not work in Forge yet")
else:
    scripts = importlib.import_module("modules.scripts")
    callbacks = importlib.import_module("modules.script_callbacks")
    webui = importlib.import_module("controlkit.hosts.webui.script")
    FRONT = webui.Front()

    class ControlKit(webui.Panel, scripts.Script):
        """The panel, on both tabs."""

        front = FRONT

    callbacks.on_cfg_denoiser(FRONT.denoising)
    callbacks.on_script_unloaded(FRONT.release)
