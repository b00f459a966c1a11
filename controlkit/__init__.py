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
    ConfigMismatch,
    ControlFailed,
    ControlKitError,
    ControlKitWarning,
    DeviceMismatch,
    DownloadError,
    DtypeUnsupported,
    FileError,
    HintError,
    HintTooBig,
    Incomplete,
    KindMismatch,
    MapDoubted,
    MissingExtra,
    NonFinite,
    NonFiniteAtStep,
    NotACheckpoint,
    NotApplicable,
    ParameterError,
    RecipeError,
    SaveError,
    ShapeMismatch,
    ShardError,
    StateError,
    Unsupported,
    UnsupportedImage,
)

if TYPE_CHECKING:
    from controlkit import embedded as embedded
    from controlkit import guidance as guidance
    from controlkit.adapters.coadapter import CoAdapterFuser
    from controlkit.adapters.controlnet import ControlNet
    from controlkit.adapters.controlnet_union import ControlNetUnion
    from controlkit.adapters.ip_adapter import IPAdapter
    from controlkit.adapters.noisy_classifier import NoisyClassifier
    from controlkit.adapters.noisy_clip import NoisyClip
    from controlkit.adapters.style_adapter import StyleAdapter
    from controlkit.adapters.t2i_adapter import T2IAdapter
    from controlkit.adapters.uni_controlnet import UniControlNet
    from controlkit.attaching import Run, attach
    from controlkit.checkpoints import CheckpointInfo, inspect, load, unet
    from controlkit.contracts import Active, Control, ExtraAttention, Residuals, RunInfo, Step, Target
    from controlkit.guidance import Guidance
    from controlkit.images import open_image
    from controlkit.maps import MapCheck, check_map
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
    "CoAdapterFuser",
    "ConfigError",
    "ConfigMismatch",
    "Control",
    "ControlFailed",
    "ControlKitError",
    "ControlKitWarning",
    "ControlModule",
    "ControlNet",
    "ControlNetUnion",
    "DetectorInfo",
    "DeviceMismatch",
    "DownloadError",
    "DtypeUnsupported",
    "ExtraAttention",
    "FileError",
    "Guidance",
    "HintError",
    "HintTooBig",
    "IPAdapter",
    "Incomplete",
    "KindMismatch",
    "MapCheck",
    "MapDoubted",
    "MissingExtra",
    "NoisyClassifier",
    "NoisyClip",
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
    "ShardError",
    "StateError",
    "Step",
    "Strength",
    "StyleAdapter",
    "T2IAdapter",
    "Target",
    "UniControlNet",
    "Unsupported",
    "UnsupportedImage",
    "__version__",
    "attach",
    "check_map",
    "detectors",
    "embedded",
    "guidance",
    "inspect",
    "load",
    "open_image",
    "preprocess",
    "run",
    "unet",
]

_HOMES = {
    "Active": "controlkit.contracts",
    "CheckpointInfo": "controlkit.checkpoints",
    "CoAdapterFuser": "controlkit.adapters.coadapter",
    "Control": "controlkit.contracts",
    "ControlModule": "controlkit.module",
    "ControlNet": "controlkit.adapters.controlnet",
    "ControlNetUnion": "controlkit.adapters.controlnet_union",
    "DetectorInfo": "controlkit.preprocessors",
    "ExtraAttention": "controlkit.contracts",
    "Guidance": "controlkit.guidance",
    "IPAdapter": "controlkit.adapters.ip_adapter",
    "MapCheck": "controlkit.maps",
    "NoisyClassifier": "controlkit.adapters.noisy_classifier",
    "NoisyClip": "controlkit.adapters.noisy_clip",
    "Recipe": "controlkit.recipes",
    "Residuals": "controlkit.contracts",
    "Run": "controlkit.attaching",
    "RunInfo": "controlkit.contracts",
    "Step": "controlkit.contracts",
    "Strength": "controlkit.strength",
    "StyleAdapter": "controlkit.adapters.style_adapter",
    "T2IAdapter": "controlkit.adapters.t2i_adapter",
    "Target": "controlkit.contracts",
    "UniControlNet": "controlkit.adapters.uni_controlnet",
    "attach": "controlkit.attaching",
    "check_map": "controlkit.maps",
    "detectors": "controlkit.preprocessors",
    "inspect": "controlkit.checkpoints",
    "load": "controlkit.checkpoints",
    "open_image": "controlkit.images",
    "preprocess": "controlkit.preprocessors",
    "run": "controlkit.recipes",
    "unet": "controlkit.checkpoints",
}
"""Where each name that is imported on first use lives."""

_MODULES = {"embedded": "controlkit.embedded", "guidance": "controlkit.guidance"}
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
