"""How our detectors and control files get into Forge's own ControlNet panel, and its API."""

from __future__ import annotations

from controlkit.hosts.forge import modules
from controlkit.hosts.forge.detectors import preprocessors
from controlkit.hosts.webui.host import host


def register() -> None:
    """Tell Forge of them; harmless when called again, as when its page is reloaded."""
    for preprocessor in preprocessors():
        host("modules_forge.shared").add_supported_preprocessor(preprocessor)
    modules.register()
