"""The weight files a `ControlNetUnion` is read from.

One layout: diffusers' has the names of the author's own files. What shapes tell is read from them; the
attention heads of the encoder are not in them, and are known for SDXL, which all published ones are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controlkit.adapters.controlnet_union.config import ControlNetUnionConfig
from controlkit.checkpoints.encoder import encoder_entries
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of_rank
from controlkit.errors import ConfigError

if TYPE_CHECKING:
    from controlkit.adapters.controlnet_union.model import ControlNetUnion
    from controlkit.checkpoints.formats import Plan


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a ControlNet-Union from these tensors.

    Args:
        layout: ``diffusers``.
        shapes: Of all tensors, by name.
        config: Entries of config.json, all or some; None: told by the shapes. The author's config.json says
            nothing of the types, so that these are always told by the shapes where it does not.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The config describes far more than there is, or the head count is not known.
    """
    from controlkit.adapters.controlnet_union.model import ControlNetUnion
    from controlkit.checkpoints.formats import Plan

    config = config or {}
    complete = "block_out_channels" in config or "_class_name" in config
    told = union_entries(shapes, what)
    entries = {**(told if complete else {**encoder_entries(shapes, what), **told}), **config}
    if "attention_head_dim" not in entries and not entries.get("num_attention_heads") and not complete:
        raise ConfigError(
            f"{what}: config",
            found="no config.json, and widths of no published family",
            expected="the number of attention heads, which shapes do not tell",
            fix='Give config={"attention_head_dim": …}, which in diffusers means the number of heads.',
            code="CK-L30",
        )
    built = ControlNetUnionConfig.from_dict(entries, f"{what}: config")
    layers = built.layers_per_block * len(built.block_out_channels)
    blocks = layers + sum(depth * built.layers_per_block for depth in built.depths) + built.num_trans_layer
    refuse_giant(blocks, shapes, what)
    return Plan(lambda: ControlNetUnion(built), {name: name for name in shapes})


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    from controlkit.checkpoints.formats import base_of

    try:
        entries = {**encoder_entries(shapes, ""), **union_entries(shapes, ""), **(config or {})}
        return ControlNetUnionConfig.from_dict({"attention_head_dim": 1, **entries}).base, entries
    except ValueError:
        return base_of(shapes), dict(config or {})


def remarks(module: ControlNetUnion) -> list[str]:
    """Say so when the weights do nothing."""
    convs = [*module.controlnet_down_blocks, module.controlnet_mid_block]
    if all(not parameter.any() for conv in convs for parameter in conv.parameters()):
        return ["all its output convolutions are zero: it was not trained, and has no effect"]
    return []


def union_entries(shapes: Shapes, what: str) -> dict[str, Any]:
    """Config entries of all but the encoder, as the shapes tell them.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ShapeMismatch: One has another number of dimensions.
    """
    types, width = shape_of_rank(shapes, "task_embedding", 2, what)
    marks = shape_of_rank(shapes, "control_add_embedding.linear_1.weight", 2, what)[1]
    hint = "controlnet_cond_embedding"
    first = shape_of_rank(shapes, f"{hint}.conv_in.weight", 4, what)
    pairs = range(1, count(shapes, rf"{hint}\.blocks\.(\d+)\."), 2)
    rest = (shape_of_rank(shapes, f"{hint}.blocks.{index}.weight", 4, what)[0] for index in pairs)
    return {
        "num_control_type": types,
        "num_trans_channel": width,
        "num_trans_layer": count(shapes, r"transformer_layes\.(\d+)\."),
        "num_proj_channel": shape_of_rank(shapes, "spatial_ch_projs.weight", 2, what)[0],
        "addition_time_embed_dim": marks // max(1, types),
        "conditioning_channels": first[1],
        "conditioning_embedding_out_channels": (first[0], *rest),
    }
