"""The weights of `NoisyClip`: SDG's ``clip_*.pt``, told by names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from controlkit.adapters.noisy_clip.config import NoisyClipConfig
from controlkit.adapters.noisy_clip.model import NoisyClip
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of_rank

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Plan

_COUNTER = ".num_batches_tracked"


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build the encoder from these tensors.

    Args:
        layout: ``sdg-original``.
        shapes: Of all tensors, by name.
        config: Entries of config.json, all or some; None: told by the shapes.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ShapeMismatch: One of them has another number of dimensions.
        ConfigError: The config describes what cannot be built.
    """
    from controlkit.checkpoints.formats import Plan

    built = NoisyClipConfig.from_dict({**infer(shapes, what), **(config or {})}, f"{what}: config")
    refuse_giant(sum(built.layers), shapes, what)
    counters = dict.fromkeys(
        (name for name in shapes if name.endswith(_COUNTER)), "a count of training steps"
    )
    return Plan(lambda: NoisyClip(built), {name: name for name in shapes if name not in counters}, counters)


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        entries = {**infer(shapes, ""), **(config or {})}
        return "other", NoisyClipConfig.from_dict(entries).to_dict()
    except ValueError:
        return "other", dict(config or {})


def remarks(module: NoisyClip) -> list[str]:
    """Nothing: its weights are never all zero."""
    return []


def infer(shapes: Shapes, what: str) -> dict[str, Any]:
    """Config entries that follow from the shapes.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ShapeMismatch: One of them has another number of dimensions.
    """
    shape = partial(shape_of_rank, shapes, what=what)
    pixels = shape("attn_pool.positional_embedding", rank=2)[0] - 1
    time = shape("time_embed.0.weight", rank=2)
    blocks = [count(shapes, rf"visual_frozen\.{10 + stage}\.(\d+)\.") for stage in range(3)]
    return {
        "width": shape("visual_frozen.6.weight", rank=4)[0],
        "layers": (*blocks, count(shapes, r"layer4\.(\d+)\.")),
        "embed_dim": shape("attn_pool.c_proj.weight", rank=2)[0],
        "image_size": 32 * math.isqrt(max(0, pixels)),
        "time_channels": time[1],
        "time_dim": time[0],
    }
