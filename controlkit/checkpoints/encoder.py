"""What the shapes of a U-Net's encoder tell about it, by diffusers' names; and what is known beside them.

ControlNets copy the encoder, so this serves both. The number of attention heads is not in the shapes: it
is known for published families and asked for elsewhere.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from controlkit.checkpoints.shapes import OTHER_OR_CUT, Shapes, count, shape_of, shape_of_rank
from controlkit.errors import Unsupported

ATTENDING = "CrossAttnDownBlock2D"
PLAIN = "DownBlock2D"

_PUBLISHED: dict[tuple[tuple[int, ...], int], dict[str, Any]] = {
    ((320, 640, 1280, 1280), 768): {"attention_head_dim": 8},
    ((320, 640, 1280, 1280), 1024): {"attention_head_dim": (5, 10, 20, 20)},
    ((320, 640, 1280), 2048): {"attention_head_dim": (5, 10, 20), "addition_time_embed_dim": 256},
    ((384, 768, 1536, 1536), 1280): {"attention_head_dim": (6, 12, 24, 24), "addition_time_embed_dim": 256},
}
"""By widths and token width: what the shapes of SD 1, SD 2, SDXL and its refiner do not tell."""


def encoder_entries(shapes: Shapes, what: str) -> dict[str, Any]:
    """Config entries, in diffusers' words, that follow from the shapes of an encoder in diffusers' names.

    Args:
        shapes: Of a U-Net's or a ControlNet's tensors.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ShapeMismatch: One has another number of dimensions.
        Unsupported: The first level is not as wide as the first convolution.
    """
    shape = partial(shape_of, shapes, what=what)
    ranked = partial(shape_of_rank, shapes, what=what)
    first = ranked("conv_in.weight", 4)
    levels = range(max(1, count(shapes, r"down_blocks\.(\d+)\.")))  # without any, the first is missed
    widths = tuple(ranked(f"down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in levels)
    if widths[0] != first[0] or 0 in widths:
        raise Unsupported(
            what,
            found=f"levels {list(widths)} wide after a first convolution of {first[0]} channels",
            expected="a first level as wide as the first convolution",
            fix="Networks of other structure are not read.",
            code="CK-L20",
        )
    attends = [
        any(name.startswith(f"down_blocks.{level}.attentions.") for name in shapes) for level in levels
    ]
    mid_attends = any(name.startswith("mid_block.attentions.") for name in shapes)
    depths = [
        count(shapes, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.") if attend else 1
        for level, attend in zip(levels, attends, strict=True)
    ]
    if mid_attends:
        depths[-1] = count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    entries: dict[str, Any] = {
        "in_channels": first[1],
        "block_out_channels": widths,
        "layers_per_block": count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": tuple(ATTENDING if attend else PLAIN for attend in attends),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if mid_attends else "UNetMidBlock2D",
        "transformer_layers_per_block": tuple(depths),
    }
    keys = [name for name in shapes if name.endswith("attn2.to_k.weight")]
    projections = [name for name in shapes if name.endswith("attentions.0.proj_in.weight")]
    if keys and projections:
        entries["cross_attention_dim"] = ranked(keys[0], 2)[1]
        entries["use_linear_projection"] = len(shape(projections[0])) == 2
    if "add_embedding.linear_1.weight" in shapes:
        entries["addition_embed_type"] = "text_time"
        entries["projection_class_embeddings_input_dim"] = ranked("add_embedding.linear_1.weight", 2)[1]
        entries.setdefault("cross_attention_dim", 2048)  # the small SDXL networks have no attention to ask
    return {**entries, **_PUBLISHED.get((widths, entries.get("cross_attention_dim", 0)), {})}


_LAYER = re.compile(
    r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.attentions\.(\d+)\.transformer_blocks\.(\d+)\."
)


def refuse_uneven(shapes: Shapes, entries: dict[str, Any], what: str) -> None:
    """Refuse attentions of other depth than their level's: no config can say that, so layers would be lost.

    Args:
        shapes: In diffusers' names.
        entries: What `encoder_entries` told from them.
        what: The checkpoint's name, for errors.

    Raises:
        Unsupported: Naming the attention.
    """
    depths: tuple[int, ...] = entries["transformer_layers_per_block"]
    found: dict[tuple[str, int, str], int] = {}
    for name in shapes:
        if match := _LAYER.match(name):
            side, level = match[1], int(match[2] or 0)
            index = {"down_blocks": level, "up_blocks": len(depths) - 1 - level}.get(side, -1)
            key = (f"{side}.{level}" if side != "mid_block" else side, index, match[3])
            found[key] = max(found.get(key, 0), 1 + int(match[4]))
    for (place, index, number), depth in found.items():
        expected = depths[index] if -1 <= index < len(depths) else None
        if depth != expected:
            raise Unsupported(
                what,
                found=f"{depth} layers in {place}.attentions.{number}",
                expected=f"{expected}, as elsewhere at this level",
                fix="Networks whose attentions differ within a level are not read.",
                code="CK-L20",
            )
    blocks = {"down_blocks": entries["layers_per_block"], "up_blocks": entries["layers_per_block"] + 1}
    for place in sorted({place for place, *_ in found} - {"mid_block"}):
        numbers = {number for other, _, number in found if other == place}
        without = [number for number in range(blocks[place.split(".")[0]]) if str(number) not in numbers]
        if without:
            raise Unsupported(
                what,
                found=f"no layers in {place}.attentions.{without[0]}, and some in others beside it",
                expected="some after each residual block of a level, or after none",
                fix=OTHER_OR_CUT,
                code="CK-L20",
            )
