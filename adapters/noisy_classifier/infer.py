"""Constructor arguments that follow from the names and shapes of a network's tensors.

A residual block that halves has the same tensors as one that does not, and a halving without weights has
none, so the number of blocks per level is found from where widths change, where attention is, and what a
config says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlkit.adapters.noisy_classifier.config import PUBLISHED_HEAD, said_of
from controlkit.checkpoints.shapes import Shapes, count, shape_of
from controlkit.errors import ConfigError

_FOUR_HEADS = (256, 2, (256, 256, 512, 768, 1024))
"""The published U-Net for 128 pixels: base width, blocks per level, widths."""
_NEW_ORDER = (192, 3, (192, 384, 576, 768))
"""The published U-Net for 64 pixels."""


@dataclass(frozen=True)
class _Block:
    """One stage of the encoder, as its tensors show it.

    Args:
        kind: ``plain`` (a residual block, which may halve), ``halving`` (a convolution), ``empty``.
        width: Channels that come out of a residual block.
        attends: Whether attention follows it.
    """

    kind: str
    width: int
    attends: bool


def infer(shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> tuple[dict[str, Any], list[str]]:
    """All arguments that both networks have: told by the config where it says, else by the shapes.

    Args:
        shapes: Of all tensors, by their original names.
        config: Constructor arguments or script flags, all or some.
        what: The checkpoint's name, for errors.

    Returns:
        The arguments, and remarks on what could only be assumed.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ConfigError: Shapes allow several networks, or none; the message says what to give.
    """
    given = said_of(config or {}, is_unet=_is_unet(shapes))
    base = shape_of(shapes, "time_embed.0.weight", what)[-1]
    first = shape_of(shapes, "input_blocks.0.0.weight", what)
    if len(first) != 4 or not base:
        raise ConfigError(
            what,
            found=f"a first convolution of shape {list(first)}",
            expected="a network for pictures, with four-dimensional convolutions",
        )
    blocks = [_block(shapes, index) for index in range(count(shapes, r"input_blocks\.(\d+)\."))]
    per_level = _blocks_per_level(blocks, given, what)
    step = per_level + 1
    widths = tuple(blocks[start + 1].width for start in range(0, len(blocks), step))
    attends = (blocks[start + 1].attends for start in range(0, len(blocks), step))
    sides = tuple(2**level for level, attending in enumerate(attends) if attending)
    borders = {blocks[index].kind for index in range(step, len(blocks), step)}
    emb = shape_of(shapes, "input_blocks.1.0.emb_layers.1.weight", what)[0]
    entries: dict[str, Any] = {
        "in_channels": first[1],
        "model_channels": base,
        "num_res_blocks": per_level,
        "attention_resolutions": sides or None,
        "channel_mult": tuple(_multiple(width, base) for width in widths),
        "conv_resample": "empty" not in borders,
        "use_scale_shift_norm": emb == 2 * widths[0],
        "resblock_updown": "plain" in borders,
    }
    remarks: list[str] = []
    if "num_heads" not in given and given.get("num_head_channels") is None:
        remarks += _assume_heads(entries, (base, per_level, widths), what, is_unet=_is_unet(shapes))
    if "use_new_attention_order" not in given:
        entries["use_new_attention_order"] = _is_unet(shapes) and (base, per_level, widths) == _NEW_ORDER
    return {**entries, **given}, remarks


def _assume_heads(
    entries: dict[str, Any], family: tuple[int, int, tuple[int, ...]], what: str, *, is_unet: bool
) -> list[str]:
    """Set the heads of the published networks, and say so where it is none of them."""
    if is_unet and family == _FOUR_HEADS:
        entries["num_heads"] = 4
        return []
    entries["num_head_channels"] = PUBLISHED_HEAD
    base, _, widths = family
    if any(width % PUBLISHED_HEAD for width in (widths[-1], *_attending(entries, widths))):
        raise ConfigError(
            f"{what}: config num_head_channels",
            found=f"none, and attention over {widths[-1]} channels",
            expected="the channels of an attention head, which shapes do not tell",
            fix="Give config={'num_head_channels': ...} or num_heads, as the network was made with.",
        )
    if base in (128, 192, 256):
        return []
    return [
        f"attention heads of {PUBLISHED_HEAD} channels were assumed, as published; config= can say others"
    ]


def _attending(entries: Mapping[str, Any], widths: tuple[int, ...]) -> list[int]:
    sides = entries["attention_resolutions"] or ()
    return [width for level, width in enumerate(widths) if 2**level in sides]


def _is_unet(shapes: Shapes) -> bool:
    return any(name.startswith("output_blocks.") for name in shapes)


def _multiple(width: int, base: int) -> float:
    return width // base if width % base == 0 else width / base


def _block(shapes: Shapes, index: int) -> _Block:
    start = f"input_blocks.{index}."
    if f"{start}0.op.weight" in shapes:
        return _Block("halving", 0, False)
    weight = shapes.get(f"{start}0.in_layers.2.weight")
    if weight is None:
        return _Block("empty", 0, False)
    return _Block("plain", weight[0], f"{start}1.qkv.weight" in shapes)


def _blocks_per_level(blocks: list[_Block], given: Mapping[str, Any], what: str) -> int:
    """How many residual blocks a level has; the first stage counts as the beginning of the first level."""
    total = len(blocks)
    said = given.get("num_res_blocks")
    levels = len(given["channel_mult"]) if isinstance(given.get("channel_mult"), tuple | list) else None
    fitting = [
        step - 1
        for step in range(2, total + 1)
        if total % step == 0
        and said in (None, step - 1)
        and levels in (None, total // step)
        and _fits(blocks, step)
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise ConfigError(
        f"{what}: config num_res_blocks",
        found=f"{total} stages, which fit {' or '.join(map(str, fitting)) or 'no number of'} blocks a level",
        expected="one that fits the tensors" if not fitting else "the right one",
        fix="Give config={'num_res_blocks': ...}, as the network was made with."
        if fitting
        else "This is no network of guided-diffusion, or parts of it are missing.",
    )


def _fits(blocks: list[_Block], step: int) -> bool:
    """Whether levels of this many stages each, the first of which is what came before, agree with all."""
    for start in range(0, len(blocks), step):
        border, level = blocks[start], blocks[start + 1 : start + step]
        if start and (border.attends or (border.kind == "plain" and border.width != blocks[start - 1].width)):
            return False
        if any(block.kind != "plain" or block != level[0] for block in level):
            return False
    kinds = {blocks[start].kind for start in range(step, len(blocks), step)}
    return len(kinds) <= 1
