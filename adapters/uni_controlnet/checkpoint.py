"""The weight files a `UniControlNet` is read from; shapes tell all but the number of attention heads.

How the original names its weights, and its constructors' arguments, are in `original.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from controlkit.adapters.uni_controlnet import original
from controlkit.adapters.uni_controlnet.config import LocalConfig, TokensConfig, read_config
from controlkit.adapters.uni_controlnet.model import UniControlNet, base_of_tokens
from controlkit.checkpoints.encoder import ATTENDING, encoder_entries, refuse_uneven
from controlkit.checkpoints.ldm_config import heads_of
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of_rank

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Plan

_INJECTED = re.compile(r"down_blocks\.(\d+)\.resnets\.(\d+)\.norm1\.conv_gamma\.weight")


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a Uni-ControlNet, or the half of it that is there, from these tensors.

    Args:
        layout: ``uni-original``, or ``diffusers`` (as saved here).
        shapes: Of all tensors, by name.
        config: For our own layout the entries of config.json. For the original one arguments of its
            constructors (``num_heads`` or ``num_head_channels``, and whatever else, which must agree with
            the shapes); see `original.arguments`. None: told by the shapes.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The config does not fit the tensors, or the head count is not known.
        Unsupported: A variant that is not implemented.
    """
    from controlkit.checkpoints.formats import Plan

    is_original = layout == "uni-original"
    names = original.our_names(shapes, what) if is_original else {name: name for name in shapes}
    own = {ours: shapes[theirs] for ours, theirs in names.items()}
    if not is_original and {"local", "tokens"} & set(config or {}):
        local, tokens = read_config(config or {}, what)
    else:
        told = infer(own, what)
        given = original.arguments(config, told, what)
        if "local" in told:
            heads = heads_of(given, told["local"], what)["attention_head_dim"]
            told["local"] = {**_own_words(told["local"]), "num_attention_heads": heads}
        local = LocalConfig(**told["local"]) if "local" in told else None
        tokens = TokensConfig(**told["tokens"]) if "tokens" in told else None
    refuse_giant(0 if local is None else local.layers_per_block * len(local.attends), shapes, what)
    with torch.device("meta"):
        UniControlNet(local, tokens)  # what cannot be built is refused before anything is read
    return Plan(lambda: UniControlNet(local, tokens), names, original.BESIDE if is_original else {})


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        is_original = layout == "uni-original"
        names = original.our_names(shapes, "") if is_original else {name: name for name in shapes}
        told = infer({ours: shapes[theirs] for ours, theirs in names.items()}, "")
    except ValueError:
        return "other", dict(config or {})
    widths = [part.get("cross_attention_dim", part.get("dim")) for part in told.values()]
    if "local" in told:
        heads = told["local"].get("attention_head_dim")
        told["local"] = _own_words(told["local"]) | ({"num_attention_heads": heads} if heads else {})
    lists = {half: {key: _plain(value) for key, value in part.items()} for half, part in told.items()}
    return base_of_tokens(widths[0] if widths else None), {**lists, **(config or {})}


def remarks(module: UniControlNet) -> list[str]:
    """Say so when the local half does nothing."""
    outputs = [
        parameter
        for name, parameter in module.named_parameters()
        if name.startswith(("local.controlnet_down_blocks.", "local.controlnet_mid_block."))
    ]
    if outputs and not any(bool(parameter.any()) for parameter in outputs):
        return ["all output convolutions of its local half are zero: it was not trained, and has no effect"]
    return []


def infer(shapes: Shapes, what: str) -> dict[str, dict[str, Any]]:
    """What the shapes, under our own names, tell of the halves that are there.

    Returns:
        ``tokens``: entries of a `TokensConfig`. ``local``: those of a U-Net's encoder in diffusers' words,
        and the entries that a `LocalConfig` has beside these.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ShapeMismatch: One has another number of dimensions.
        Unsupported: Attentions of different depth within a level.
    """
    parts: dict[str, dict[str, Any]] = {}
    for half, tell in (("local", _infer_local), ("tokens", _infer_tokens)):
        start = f"{half}."
        inside = {name.removeprefix(start): s for name, s in shapes.items() if name.startswith(start)}
        if inside:
            parts[half] = tell(inside, what)
    return parts


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _infer_local(shapes: Shapes, what: str) -> dict[str, Any]:
    def width(name: str, side: int = 0) -> int:
        return shape_of_rank(shapes, name, 4, what)[side]

    width("down_blocks.0.resnets.0.conv1.weight")
    for name, shape in shapes.items():
        shape_of_rank(shapes, name, len(shape) or 1, what)  # a single number is nobody's weight
    entries = encoder_entries(shapes, what)
    refuse_uneven(shapes, entries, what)
    places = [(int(m[1]), int(m[2])) for name in shapes if (m := _INJECTED.fullmatch(name))]
    step = entries["layers_per_block"] + 1
    levels = range(count(shapes, r"extractor\.levels\.(\d+)\."))
    return {
        **entries,
        "local_channels": width("extractor.stem.0.weight", 1),
        "stem_channels": tuple(width(f"extractor.stem.{index}.weight") for index in (0, 1, 3)),
        "inject_channels": tuple(width(f"extractor.levels.{level}.weight") for level in levels),
        "inject_layers": tuple(sorted(1 + level * step + block for level, block in places)),
    }


def _infer_tokens(shapes: Shapes, what: str) -> dict[str, Any]:
    dim = shape_of_rank(shapes, "norm1.weight", 1, what)[0]
    outputs, inner = shape_of_rank(shapes, "ff2.net.2.weight", 2, what)
    return {
        "dim": dim,
        "hidden": shape_of_rank(shapes, "norm2.weight", 1, what)[0],
        "inner": (shape_of_rank(shapes, "ff1.net.2.weight", 2, what)[1], inner),
        "count": max(1, outputs // max(1, dim)),
    }


def _own_words(told: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a `LocalConfig`, without the heads."""
    depths: tuple[int, ...] = told["transformer_layers_per_block"]
    renamed = {
        "attends": tuple(kind == ATTENDING for kind in told["down_block_types"]),
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
    }
    left_out = ("down_block_types", "mid_block_type", "attention_head_dim")
    return {key: value for key, value in told.items() if key not in left_out} | renamed
