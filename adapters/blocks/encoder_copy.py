"""What a ControlNet and the networks made after it are built from: a copy of the U-Net's encoder, a hint
encoder and zero convolutions.

Source:
    Zhang et al. (2023), arXiv:2302.05543, section 3; operations and parameter names of diffusers 0.42
    `models/controlnets/controlnet.py`, to the bit in float32 on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks.copy_config import EncoderCopyConfig
from controlkit.adapters.blocks.embeddings import sinusoids
from controlkit.adapters.blocks.encoder import DownBlock, Downsample, MidBlock, ResnetBlock
from controlkit.adapters.blocks.transformer import SpatialTransformer
from controlkit.checkpoints.encoder import ATTENDING
from controlkit.contracts import Target
from controlkit.errors import BaseMismatch, BatchMismatch, HintError, ParameterError


class HintEncoder(nn.Module):
    """Control map (batch, channels, H, W) to features (batch, width, h, w) as large as the latents.

    Args:
        channels: Of the map.
        widths: Of the convolutions; each after the first halves the size.
        width: Of the features, which are zero before training.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, padding=1, stride=2))
        self.conv_out = zero_conv(widths[-1], width, 3)

    def forward(self, control_map: Tensor) -> Tensor:
        features = F.silu(self.conv_in(control_map))
        for block in self.blocks:
            features = F.silu(block(features))
        return self.conv_out(features)


def zero_conv(inputs: int, outputs: int, size: int = 1) -> nn.Conv2d:
    """A convolution that answers zeros before training."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def skip_channels(widths: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Channels of each skip connection of a U-Net, in its order: conv_in, then blocks and downsampler."""
    channels = [widths[0]]
    for level, width in enumerate(widths):
        channels += [width] * (layers + (level < len(widths) - 1))
    return tuple(channels)


def down_block(config: EncoderCopyConfig, level: int, time_dim: int) -> DownBlock:
    """One level of the encoder, with the time embedding ``time_dim`` wide."""
    widths, layers = config.block_out_channels, config.layers_per_block
    width = widths[level]
    inputs = [widths[max(0, level - 1)]] + [width] * (layers - 1)
    resnets = [
        ResnetBlock(before, width, time_dim, groups=config.norm_num_groups, eps=config.norm_eps)
        for before in inputs
    ]
    attends = config.down_block_types[level] == ATTENDING
    attentions = [_transformer(config, level) for _ in range(layers)] if attends else None
    last = level == len(widths) - 1
    return DownBlock(resnets, attentions, None if last else Downsample(width, config.downsample_padding))


def mid_block(config: EncoderCopyConfig, time_dim: int) -> MidBlock:
    """The middle block, with the time embedding ``time_dim`` wide."""
    width = config.block_out_channels[-1]

    def resnet() -> ResnetBlock:
        return ResnetBlock(
            width,
            width,
            time_dim,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            divisor=config.mid_block_scale_factor,
        )

    attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
    return MidBlock(resnet, _transformer(config, len(config.block_out_channels) - 1) if attends else None)


def time_angles(config: EncoderCopyConfig, latents: Tensor, timesteps: Tensor | float) -> Tensor:
    """Timesteps, () or (batch,), as what the time embedding reads: (batch, width) in the latents' dtype.

    Raises:
        BatchMismatch: Neither one timestep, nor one per row of the latents.
    """
    rows = latents.shape[0]
    steps = torch.as_tensor(timesteps, device=latents.device).reshape(-1)
    check_rows("timesteps", steps, rows, one=True)
    angles = sinusoids(
        steps.expand(rows),
        config.block_out_channels[0],
        cosine_first=config.flip_sin_to_cos,
        shift=config.freq_shift,
    )
    return angles.to(latents.dtype)


def size_conditions(
    config: EncoderCopyConfig, added: Mapping[str, Tensor] | None, rows: int, dtype: torch.dtype
) -> Tensor:
    """SDXL's pooled text and embedded size ids side by side, as what ``add_embedding`` reads.

    Args:
        config: Has ``addition_embed_type``.
        added: ``text_embeds`` (rows, pooled) and ``time_ids`` (rows, 6); or ``embedded``, both side by side
            already, as other hosts than diffusers have them.
        rows: Of the latents.
        dtype: Of the result.

    Raises:
        ParameterError: One is missing.
        BatchMismatch: Another number of rows.
    """
    if added is not None and "embedded" in added:
        check_rows("added embedded", added["embedded"], rows)
        return added["embedded"].to(dtype)
    missing = [key for key in ("text_embeds", "time_ids") if key not in (added or {})]
    if missing or added is None:
        raise ParameterError(
            "added",
            found=f"no {' and no '.join(missing)}",
            expected="text_embeds and time_ids, as in diffusers' added_cond_kwargs",
            fix="SDXL networks need the pooled text (rows, 1280) and the size ids (rows, 6).",
        )
    pooled, ids = added["text_embeds"], added["time_ids"]
    check_rows("added text_embeds", pooled, rows)
    check_rows("added time_ids", ids, rows)
    sizes = sinusoids(
        ids.flatten(),
        config.addition_time_embed_dim or 0,
        cosine_first=config.flip_sin_to_cos,
        shift=config.freq_shift,
    )
    return torch.cat([pooled, sizes.reshape(rows, -1)], dim=-1).to(dtype)


def check_map(config: EncoderCopyConfig, control_map: Tensor, what: str) -> None:
    """Refuse a map of another number of channels.

    Raises:
        HintError: It is one.
    """
    channels = config.conditioning_channels
    if control_map.ndim != 4 or control_map.shape[1] != channels:
        raise HintError(
            what,
            found=f"shape {tuple(control_map.shape)}",
            expected=f"(batch, {channels}, height, width)",
            fix="Give RGB in [0, 1]; repeat a gray map's channel, drop an alpha channel.",
        )


def check_features(config: EncoderCopyConfig, features: Tensor, sample: Tensor, what: str) -> None:
    """Refuse an encoded map that does not lie over the latents.

    Args:
        config: Of the network.
        features: What the hint encoder made of the map.
        sample: The latents after the first convolution.
        what: The argument, for errors.

    Raises:
        HintError: It has another size.
        BatchMismatch: It has another number of rows, and more than one.
    """
    if features.shape[1:] != sample.shape[1:]:
        size = tuple(sample.shape[-2:])
        factor = hint_factor(config)
        raise HintError(
            what,
            found=f"{tuple(features.shape[1:])} once encoded",
            expected=f"{tuple(sample.shape[1:])}, as latents are {size[0]}x{size[1]}",
            fix=f"The map must be {factor} times as large as the latents: "
            f"{factor * size[0]}x{factor * size[1]}.",
        )
    check_rows(what, features, sample.shape[0], one=True)


def hint_factor(config: EncoderCopyConfig) -> int:
    """How much larger than the latents a map is, each way."""
    return 2 ** (len(config.conditioning_embedding_out_channels) - 1)


def refuse_other_base(name: str, title: str, config: EncoderCopyConfig, target: Target) -> None:
    """Refuse a U-Net whose encoder is not the one that was copied.

    Args:
        name: The control's name.
        title: What it is, with its article.
        config: Of its network.
        target: The U-Net.

    Raises:
        BaseMismatch: Naming both.
    """
    pooled = config.projection_class_embeddings_input_dim if config.addition_embed_type else None
    ours = (
        config.in_channels,
        config.cross_attention_dim,
        skip_channels(config.block_out_channels, config.layers_per_block),
        pooled,
    )
    theirs = (target.channels, target.token_dim, target.skip_channels, target.added_dim)
    if ours != theirs:
        levels = "/".join(map(str, config.block_out_channels))
        raise BaseMismatch(
            name,
            found=f"{title} for {config.base} (tokens {config.cross_attention_dim} wide,"
            f" levels {levels}, latents of {config.in_channels} channels)",
            expected=f"one for {target.describe()} with latents of {target.channels} channels",
            fix="Use the module made for this base model, or the base model it was made for.",
        )


def check_rows(what: str, value: Tensor, rows: int, *, one: bool = False) -> None:
    """Refuse another number of rows than the latents have; ``one``: a single row serves all.

    Raises:
        BatchMismatch: It has another number.
    """
    if value.shape[0] != rows and not (one and value.shape[0] == 1):
        raise BatchMismatch(
            what,
            found=f"{value.shape[0]} rows",
            expected=f"{rows}, as many as latents" + (", or 1" if one else ""),
            fix="Repeat it for both halves of classifier-free guidance.",
        )


def _transformer(config: EncoderCopyConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        config.block_out_channels[level],
        config.heads[level],
        config.cross_attention_dim,
        depth=config.depths[level],
        groups=config.norm_num_groups,
        linear=config.use_linear_projection,
    )
