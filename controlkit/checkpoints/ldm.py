"""Names of a U-Net's parameters: the original latent diffusion code's from diffusers', and back.

Source:
    `ldm/modules/diffusionmodules/openaimodel.py` of CompVis/latent-diffusion, as used by
    lllyasviel/ControlNet@ed85cd1e; the order of blocks is that of its constructor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from controlkit.checkpoints.shapes import OTHER_OR_CUT, Shapes
from controlkit.errors import Incomplete, Unsupported

_HEADS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")

_HEADS_BACK = {original: ours for ours, original in _HEADS.items()}
_RESNET_BACK = {original: ours for ours, original in _RESNET.items()}
_ROOTS = (
    "time_embed.",
    "label_emb.",
    "input_",
    "zero_convs.",
    "middle_block",
    "output_blocks.",
    "out.",
    "id_",
)
_TRANSFORMER = ("norm.", "proj_in.", "transformer_blocks.", "proj_out.")
_ORIGINAL_BLOCK = re.compile(r"(input|output)_blocks\.(\d{1,6})\.(\d)\.(.*)")
_ORIGINAL_MIDDLE = re.compile(r"middle_block\.([012])\.(.*)")


def ldm_name(name: str, *, layers: int, up_attends: Sequence[bool] = ()) -> str | None:
    """The original name of one parameter, without ``model.diffusion_model.`` or any other prefix.

    Args:
        name: By diffusers, such as ``down_blocks.0.resnets.1.conv1.weight``.
        layers: Residual blocks per level of the encoder.
        up_attends: Whether each level of the decoder attends; needed for its upsamplers alone.

    Returns:
        The name, or None where a U-Net has no such parameter.
    """
    module, _, leaf = name.rpartition(".")
    if module in _HEADS:
        return f"{_HEADS[module]}.{leaf}"
    if match := _MIDDLE.fullmatch(name):
        part, number, rest = match[1], int(match[2]), match[3]
        place = 1 if part == "attentions" else 2 * number
        return f"middle_block.{place}.{_inside(part, rest)}"
    if not (match := _BLOCK.fullmatch(name)):
        return None
    side, level, part, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if part == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        place = 2 if up_attends[level] else 1
        return f"output_blocks.{level * (layers + 1) + layers}.{place}.{rest}"
    index = level * (layers + 1) + number + (side == "down")
    blocks = "input_blocks" if side == "down" else "output_blocks"
    return f"{blocks}.{index}.{1 if part == 'attentions' else 0}.{_inside(part, rest)}"


def _inside(part: str, rest: str) -> str:
    if part == "attentions":
        return rest
    module, _, leaf = rest.rpartition(".")
    return f"{_RESNET[module]}.{leaf}"


def diffusers_name(name: str, *, layers: int) -> str | None:
    """The opposite of `ldm_name`: diffusers' name of one parameter of the original code.

    Args:
        name: Without any prefix, such as ``input_blocks.2.0.in_layers.2.weight``.
        layers: Residual blocks per level of the encoder, as `layers_of` tells.

    Returns:
        The name, or None where a U-Net with one attention after each residual block has no such parameter.
    """
    module, _, leaf = name.rpartition(".")
    if module in _HEADS_BACK:
        return f"{_HEADS_BACK[module]}.{leaf}"
    if match := _ORIGINAL_MIDDLE.fullmatch(name):
        place, rest = int(match[1]), match[2]
        part, number = ("attentions", 0) if place == 1 else ("resnets", place // 2)
        return _joined(f"mid_block.{part}.{number}", part, rest)
    if not (match := _ORIGINAL_BLOCK.fullmatch(name)):
        return None
    side, index, place, rest = match[1], int(match[2]), int(match[3]), match[4]
    if side == "input":
        level, number = divmod(index - 1, layers + 1)
        if index == 0 or (number == layers) != rest.startswith("op."):
            return None
        if number == layers:
            return (
                f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}" if not place else None
            )
        start = f"down_blocks.{level}"
    else:
        level, number = divmod(index, layers + 1)
        start = f"up_blocks.{level}"
        if rest.startswith("conv."):
            return f"{start}.upsamplers.0.{rest}" if place and number == layers else None
    part = ("resnets", "attentions")[place] if place < 2 else None
    return None if part is None else _joined(f"{start}.{part}.{number}", part, rest)


def layers_of(shapes: Shapes, what: str) -> int:
    """Residual blocks per level of the encoder, told by where its downsamplers are.

    Args:
        shapes: By original names without a prefix.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Whole blocks of the encoder, or the middle's attention, are missing.
        Unsupported: Levels of different depth, or resampling without convolutions of their own.
    """
    blocks = {int(match[1]) for name in shapes if (match := re.match(r"input_blocks\.(\d{1,6})\.", name))}
    downs = {
        int(match[1]) for name in shapes if (match := re.match(r"input_blocks\.(\d{1,6})\.0\.op\.", name))
    }
    total = 1 + max(blocks, default=-1)
    if len(blocks) != total or total < 2:
        raise Incomplete(
            what,
            found=f"{len(blocks)} blocks of the encoder, the last of which is number {total - 1}",
            expected="all of them, to tell the size of the network",
            fix=OTHER_OR_CUT,
            code="CK-L22",
        )
    if not any(name.startswith("middle_block.1.") for name in shapes):
        raise Incomplete(
            what,
            found="no attention in middle_block.1",
            expected="it, as the original always has it",
            fix=OTHER_OR_CUT,
            code="CK-L22",
        )
    step = min(downs, default=total)
    if downs != set(range(step, total, step)) or total % step or step < 2:
        raise Unsupported(
            what,
            found=f"{total} blocks in the encoder, downsampling convolutions at {sorted(downs) or 'none'}",
            expected="as many blocks at every level, and such a convolution after each level but the last",
            fix="Networks of other structure are not read; or the file is incomplete.",
            code="CK-L20",
        )
    return step - 1


def names_from_original(
    shapes: Shapes, what: str, more: Callable[[str], str | None] = lambda name: None
) -> dict[str, str]:
    """For each parameter by diffusers' name, its original name.

    Args:
        shapes: By original names without a prefix; tensors of something else are left out.
        what: The checkpoint's name, for errors.
        more: Diffusers' names of parameters that a U-Net does not have.

    Raises:
        Incomplete: See `layers_of`.
        Unsupported: See `layers_of`, or a tensor of the network that has no place in diffusers'.
    """
    layers = layers_of(shapes, what)
    names: dict[str, str] = {}
    for name in shapes:
        ours = more(name) or diffusers_name(name, layers=layers)
        if ours is not None:
            names[ours] = name
        elif name.startswith(_ROOTS):
            raise Unsupported(
                what,
                found=f"{name!r:.120}, a tensor of another structure",
                expected="residual blocks, each followed by a transformer where its level attends",
                fix="This variant is not implemented, so it is refused and not loaded wrongly.",
                code="CK-L20",
            )
    return names


def _joined(start: str, part: str, rest: str) -> str | None:
    if part == "attentions":
        return f"{start}.{rest}" if rest.startswith(_TRANSFORMER) else None
    module, _, leaf = rest.rpartition(".")
    return f"{start}.{_RESNET_BACK[module]}.{leaf}" if module in _RESNET_BACK else None
