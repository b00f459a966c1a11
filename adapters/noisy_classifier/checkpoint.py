"""The weights of `NoisyClassifier`: guided-diffusion's ``*_classifier.pt``, told by names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controlkit.adapters.noisy_classifier.config import ClassifierConfig
from controlkit.adapters.noisy_classifier.infer import infer
from controlkit.adapters.noisy_classifier.model import NoisyClassifier
from controlkit.checkpoints.shapes import Shapes, refuse_giant, shape_of

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Plan


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a classifier from these tensors.

    Args:
        layout: ``guided-diffusion``.
        shapes: Of all tensors, by name.
        config: Arguments of ``EncoderUNetModel`` or ``create_classifier``, all or some; None: told by the
            shapes, and heads of 64 channels as in every published one.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: Shapes do not tell and the config does not say, or it says what cannot be built.
    """
    from controlkit.checkpoints.formats import Plan

    entries, assumed = infer_classifier(shapes, config, what)
    built = ClassifierConfig.from_dict(entries, f"{what}: config")
    refuse_giant(built.num_res_blocks * len(built.widths), shapes, what)
    return Plan(lambda: NoisyClassifier(built, assumed), {name: name for name in shapes})


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        entries, _ = infer_classifier(shapes, {"num_heads": 1, **(config or {})}, "")
        told = ClassifierConfig.from_dict(entries).to_dict()
    except (ValueError, IndexError):
        return "other", dict(config or {})
    if told["num_head_channels"] is None and "num_heads" not in (config or {}):
        told |= {"num_heads": None}  # shapes do not tell
    return "other", told


def remarks(module: NoisyClassifier) -> list[str]:
    """What could only be assumed; and a last layer of zeros, whose gradient is nothing."""
    last = [parameter for name, parameter in module.out.named_parameters() if name.endswith("weight")][-1]
    silent = ["its last layer is all zeros: it guides nowhere"] if not last.any() else []
    return [*module.assumed, *silent]


def infer_classifier(
    shapes: Shapes, config: Mapping[str, Any] | None, what: str
) -> tuple[dict[str, Any], list[str]]:
    """Constructor arguments of a classifier, and remarks on what could only be assumed.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ConfigError: Shapes allow several networks, or none.
    """
    entries, assumed = infer(shapes, config, what)
    if "out.2.positional_embedding" in shapes:
        pool, last = "attention", "out.2.c_proj.weight"
        halvings = len(entries["channel_mult"]) - 1
        entries.setdefault("image_size", math.isqrt(shapes["out.2.positional_embedding"][-1] - 1) << halvings)
    elif "out.3.weight" in shapes and len(shapes["out.3.weight"]) == 4:
        pool, last = "adaptive", "out.3.weight"
    elif "out.3.weight" in shapes:
        pool, last = "spatial_v2", "out.3.weight"
    else:
        pool, last = "spatial", "out.2.weight"
    entries.setdefault("pool", pool)
    entries.setdefault("out_channels", shape_of(shapes, last, what)[0])
    return entries, assumed
