"""Names of a U-Net's parameters in the original latent diffusion code, from diffusers' names.

Source:
    `ldm/modules/diffusionmodules/openaimodel.py` of CompVis/latent-diffusion, as used by
    lllyasviel/ControlNet@ed85cd1e; the order of blocks is that of its constructor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
