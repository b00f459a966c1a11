"""The inputs that several nodes have, and what is made of them."""

from __future__ import annotations

from typing import Any

from controlkit.errors import ParameterError
from controlkit.hosts.comfy.control import EngineControl
from controlkit.hosts.written import read_options, read_points
from controlkit.module import ControlModule
from controlkit.preprocessors import detectors

CATEGORY = "controlkit"
NO_DETECTOR = "none: the image is the map"


def number(
    default: float, low: float, high: float, about: str, step: float = 0.01
) -> tuple[str, dict[str, Any]]:
    """A FLOAT widget."""
    options = {"default": default, "min": low, "max": high, "step": step, "round": False, "tooltip": about}
    return "FLOAT", options


def text(about: str, default: str = "") -> tuple[str, dict[str, Any]]:
    """A STRING widget."""
    return "STRING", {"default": default, "tooltip": about}


MODEL = ("MODEL", {"tooltip": "the model to draw with; what comes out is a copy that has this added"})
POSITIVE = ("CONDITIONING", {"tooltip": "the prompt, or what another control was added to"})
NEGATIVE = ("CONDITIONING", {"tooltip": "the same of the negative prompt"})
STRENGTH = number(1.0, -10.0, 10.0, "scale of what is added: 0 is off, 1 as trained")
WINDOW = {
    "start": number(0.0, 0.0, 1.0, "share of the sampler's steps at which it begins to act"),
    "end": number(1.0, 0.0, 1.0, "share of the steps at which it ends"),
}
CURVE = text("scale over the run as points, such as 0: 1, 0.5: 0.2; takes the place of strength")
BLOCK_SCALES = text("one factor per residual, first to deepest, the middle last")


def schedule(strength: float, start: float, end: float, curve: str = "") -> dict[str, Any]:
    """``scale``, ``start`` and ``end`` as every control is bound with.

    Raises:
        ParameterError: The curve cannot be read.
    """
    return {"scale": read_points(curve) or strength, "start": start, "end": end}


def our_control(control_net: Any) -> EngineControl:
    """A CONTROL_NET of ours.

    Raises:
        ParameterError: It is one of ComfyUI's own or of another extension.
    """
    if not isinstance(control_net, EngineControl):
        raise ParameterError(
            "control_net",
            found=f"a {type(control_net).__name__} that was loaded by another node",
            expected="one that a node of ControlKit loaded",
            fix="Apply it with ComfyUI's own node, in the same chain.",
        )
    return control_net


def our_module(control_net: Any) -> ControlModule:
    """The module of a CONTROL_NET of ours.

    Raises:
        ParameterError: It is one of ComfyUI's own or of another extension.
    """
    return our_control(control_net).module


def module_of(control_net: Any, kind: type[Any], name: str, expected: str) -> Any:
    """The same, of the kind that a node is for.

    Args:
        control_net: What the node was given.
        kind: Of module.
        name: The input's.
        expected: The kind in words, such as ``an IP-Adapter``.

    Raises:
        ParameterError: It is another kind, or not ours.
    """
    module = our_module(control_net)
    if not isinstance(module, kind):
        raise ParameterError(
            name, found=f"a {module.kind}", expected=expected, fix="Use the node made for its kind."
        )
    return module


def detector_inputs() -> dict[str, Any]:
    """The choice of a detector and its options, for nodes that take a map or a photo."""
    names = [NO_DETECTOR, *(info.name for info in detectors())]
    return {
        "detector": (names, {"tooltip": "makes the map from a photo"}),
        "detector_options": text("such as low_threshold: 60, high_threshold: 140"),
    }


def read_detector(detector: str, options: str) -> dict[str, Any]:
    """``detect`` and ``detect_options`` as every control that reads a map is bound with.

    Raises:
        ParameterError: The options cannot be read.
    """
    detect = None if detector in ("", NO_DETECTOR) else detector
    return {"detect": detect, "detect_options": read_options(options) if detect else None}
