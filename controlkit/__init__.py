"""Control for text-to-image diffusion: ControlNet, T2I-Adapter, guidance, on any diffusers pipeline.

    import controlkit as ck

    canny = ck.load("lllyasviel/control_v11p_sd15_canny")
    with ck.attach(pipe, canny.on(photo, detect="canny", scale=0.9)) as run:
        image = pipe("a red brick house").images[0]
    print(run.report())

Everything public is here, and is imported when it is first used: ``import controlkit`` by itself imports
neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from controlkit.errors import (
    BaseMismatch,
    BatchMismatch,
    Busy,
    CheckpointCorrupt,
    CheckpointError,
    CheckpointUnsafe,
    ConfigError,
    ControlFailed,
    ControlKitError,
    ControlKitWarning,
    DeviceMismatch,
    FileError,
    HintError,
    HintTooBig,
    Incomplete,
    KindMismatch,
    MissingExtra,
    NonFinite,
    NonFiniteAtStep,
    NotACheckpoint,
    NotApplicable,
    ParameterError,
    RecipeError,
    SaveError,
    ShapeMismatch,
    StateError,
    Unsupported,
    UnsupportedImage,
)

if TYPE_CHECKING:
    from controlkit import embedded as embedded
    from controlkit.adapters.controlnet import ControlNet
    from controlkit.adapters.phi_guidance import Guidance
    from controlkit.adapters.t2i_adapter import T2IAdapter
    from controlkit.attaching import Run, attach
    from controlkit.checkpoints import CheckpointInfo, inspect, load
    from controlkit.contracts import Active, Control, Residuals, RunInfo, Step, Target
    from controlkit.images import open_image
    from controlkit.module import ControlModule
    from controlkit.preprocessors import DetectorInfo, detectors, preprocess
    from controlkit.recipes import Recipe, run
    from controlkit.strength import Strength

__version__ = "0.1.0"

__all__ = [
    "Active",
    "BaseMismatch",
    "BatchMismatch",
    "Busy",
    "CheckpointCorrupt",
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointUnsafe",
    "ConfigError",
    "Control",
    "ControlFailed",
    "ControlKitError",
    "ControlKitWarning",
    "ControlModule",
    "ControlNet",
    "DetectorInfo",
    "DeviceMismatch",
    "FileError",
    "Guidance",
    "HintError",
    "HintTooBig",
    "Incomplete",
    "KindMismatch",
    "MissingExtra",
    "NonFinite",
    "NonFiniteAtStep",
    "NotACheckpoint",
    "NotApplicable",
    "ParameterError",
    "Recipe",
    "RecipeError",
    "Residuals",
    "Run",
    "RunInfo",
    "SaveError",
    "ShapeMismatch",
    "StateError",
    "Step",
    "Strength",
    "T2IAdapter",
    "Target",
    "Unsupported",
    "UnsupportedImage",
    "__version__",
    "attach",
    "detectors",
    "embedded",
    "inspect",
    "load",
    "open_image",
    "preprocess",
    "run",
]

_HOMES = {
    "Active": "controlkit.contracts",
    "CheckpointInfo": "controlkit.checkpoints",
    "Control": "controlkit.contracts",
    "ControlModule": "controlkit.module",
    "ControlNet": "controlkit.adapters.controlnet",
    "DetectorInfo": "controlkit.preprocessors",
    "Guidance": "controlkit.adapters.phi_guidance",
    "Recipe": "controlkit.recipes",
    "Residuals": "controlkit.contracts",
    "Run": "controlkit.attaching",
    "RunInfo": "controlkit.contracts",
    "Step": "controlkit.contracts",
    "Strength": "controlkit.strength",
    "T2IAdapter": "controlkit.adapters.t2i_adapter",
    "Target": "controlkit.contracts",
    "attach": "controlkit.attaching",
    "detectors": "controlkit.preprocessors",
    "inspect": "controlkit.checkpoints",
    "load": "controlkit.checkpoints",
    "open_image": "controlkit.images",
    "preprocess": "controlkit.preprocessors",
    "run": "controlkit.recipes",
}
"""Where each name that is imported on first use lives."""

_MODULES = {"embedded": "controlkit.embedded"}
"""Public names that are modules themselves."""


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = import_module(_MODULES[name])
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'controlkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
