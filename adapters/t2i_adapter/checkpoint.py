"""`T2IAdapter` in diffusers layout, and as saved here where diffusers lacks the network; shapes tell it all.

The original layouts are in `original.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from controlkit.adapters.t2i_adapter.config import T2IAdapterConfig
from controlkit.adapters.t2i_adapter.model import T2IAdapter
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Plan


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a T2I-Adapter from these tensors.

    Args:
        layout: ``diffusers``.
        shapes: Of all tensors, by name.
        config: Entries of config.json, all or some; None: told by the shapes.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The config describes far more than there is.
    """
    from controlkit.checkpoints.formats import Plan

    config = config or {}
    complete = "channels" in config or "_class_name" in config
    entries = dict(config) if complete else {**infer(shapes, what), **config}
    built = T2IAdapterConfig.from_dict(entries, f"{what}: config")
    blocks = built.num_res_blocks * len(built.channels)
    refuse_giant(blocks, shapes, what)
    return Plan(lambda: T2IAdapter(built), {name: name for name in shapes})


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        entries = dict(config) if config else infer(shapes, "")
        return T2IAdapterConfig.from_dict(entries).base, entries
    except ValueError:
        return "other", dict(config or {})


def remarks(module: T2IAdapter) -> list[str]:
    """Nothing: its weights are never all zero."""
    return []


def infer(shapes: Shapes, what: str) -> dict[str, Any]:
    """Config entries that follow from the shapes.

    A full adapter has a convolution where a level widens. The one for SDXL differs from the others in
    where it halves the size, which leaves a trace only where that is done by convolutions, and in folding
    16x16 pixels, which does.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
    """

    shape = partial(shape_of, shapes, what=what)
    levels = range(count(shapes, r"adapter\.body\.(\d+)\."))
    light = "adapter.conv_in.weight" not in shapes
    folded = shape("adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight")[1]
    last = "out_conv" if light else "resnets.0.block1"
    channels = tuple(shape(f"adapter.body.{level}.{last}.weight")[0] for level in levels)
    halves = [level for level in levels if f"adapter.body.{level}.downsample.weight" in shapes]
    variant: dict[str, Any] = {}
    if light and channels[-1:] != channels[-2:-1]:
        variant["last_channels"] = channels[-1]
    elif not light:
        variant["ksize"] = shape("adapter.body.0.resnets.0.block2.weight")[-1]
        variant["sk"] = not any(".skep." in name for name in shapes)
        variant["use_conv"] = bool(halves)
    xl = halves == [2] or (folded in (256, 768) and not halves)
    # 64 or 192 for 8x8 pixels of 1 or 3 channels, 256 or 768 for 16x16.
    factor = 16 if xl else 8 if folded in (64, 192) or halves else math.isqrt(max(1, folded // 3))
    return {
        "in_channels": max(1, folded // factor**2),
        "channels": channels[:-1] if light else channels,
        "num_res_blocks": count(shapes, r"adapter\.body\.0\.resnets\.(\d+)\."),
        "downscale_factor": factor,
        "adapter_type": "light_adapter" if light else "full_adapter_xl" if factor == 16 else "full_adapter",
        **variant,
    }
