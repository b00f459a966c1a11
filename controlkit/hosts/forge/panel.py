"""How our detectors and control files get into Forge's own ControlNet panel, and its API."""

from __future__ import annotations

from typing import Any

from controlkit.hosts.forge.detectors import preprocessors
from controlkit.hosts.forge.modules import Ours, Rest
from controlkit.hosts.webui.host import host


def register() -> None:
    """Tell Forge of them; harmless when called again, as Forge does when its page is reloaded."""
    shared: Any = host("modules_forge.shared")
    for preprocessor in preprocessors():
        shared.add_supported_preprocessor(preprocessor)
    models: list[Any] = shared.supported_control_models
    models[:] = [model for model in models if model not in (Ours, Rest)]
    shared.add_supported_control_model(Ours)
    models.insert(0, models.pop())  # before Forge's own, which would take some of its files for others
    shared.add_supported_control_model(Rest)
