"""What the classifier and the pixel U-Net are built from, under the parameter names of guided-diffusion.

Source:
    Dhariwal & Nichol (2021), arXiv:2105.05233, section 3 and appendix; the operations and names of
    openai/guided-diffusion@22e0df81 `guided_diffusion/unet.py`. Norms and the softmax are computed in
    float32 whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks import sinusoids
from controlkit.adapters.noisy_classifier.config import NetworkConfig

GROUPS = 32
Resize = Literal["same", "down", "up"]


class Norm(nn.GroupNorm):
    """Group normalisation with 32 groups, in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, input: Tensor) -> Tensor:
        normed = F.group_norm(
            input.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps
        )
        return normed.to(input.dtype)


def resized(x: Tensor, resize: Resize) -> Tensor:
    """Half the size by averaging 2x2 pixels, or twice the size by repeating them."""
    if resize == "down":
        return F.avg_pool2d(x, 2)
    return x if resize == "same" else F.interpolate(x, scale_factor=2.0, mode="nearest")


class Resample(nn.Module):
    """Half or twice the size, with a 3x3 convolution where ``learned``."""

    def __init__(self, channels: int, resize: Resize, *, learned: bool) -> None:
        super().__init__()
        self.resize: Resize = resize
        self.op = nn.Conv2d(channels, channels, 3, 2, 1) if learned and resize == "down" else None
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned and resize == "up" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.op is not None:
            return self.op(x)
        x = resized(x, self.resize)
        return x if self.conv is None else self.conv(x)


class ResBlock(nn.Module):
    """Two convolutions with a shortcut; the time embedding shifts, or scales and shifts, the second norm.

    Args:
        inputs: Channels in.
        outputs: Channels out; a 1x1 convolution is on the shortcut where they differ.
        config: Width of the time embedding, and whether it scales too.
        resize: Both paths are resized, after the first activation and before its convolution.
    """

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, resize: Resize = "same") -> None:
        super().__init__()
        self.resize: Resize = resize
        self.scales = config.use_scale_shift_norm
        conditioning = 2 * outputs if self.scales else outputs
        self.in_layers = nn.Sequential(Norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.time_dim, conditioning))
        # The third is a dropout in training; its place is kept for the names.
        self.out_layers = nn.Sequential(
            Norm(outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h', w'); ``time`` (batch, time_dim)."""
        norm, act, conv = self.in_layers
        hidden = conv(resized(act(norm(x)), self.resize))
        conditioning = self.emb_layers(time)[:, :, None, None].to(hidden.dtype)
        norm, act, _, conv = self.out_layers
        if self.scales:
            scale, shift = conditioning.chunk(2, dim=1)
            hidden = norm(hidden) * (1 + scale) + shift
        else:
            hidden = norm(hidden + conditioning)
        return self.skip_connection(resized(x, self.resize)) + conv(act(hidden))


def attention(qkv: Tensor, heads: int, *, heads_first: bool) -> Tensor:
    """Every position looks at every other.

    Args:
        qkv: (batch, 3 * channels, n): queries, keys and values.
        heads: Number of heads.
        heads_first: How the channels are laid out: heads, and within each its query, key and value (the
            older order of guided-diffusion); or query, key and value, and within each its heads.

    Returns:
        (batch, channels, n).
    """
    batch, width, length = qkv.shape
    parts = (
        qkv.reshape(batch, heads, 3, -1, length) if heads_first else qkv.reshape(batch, 3, heads, -1, length)
    )
    query, key, value = parts.unbind(2 if heads_first else 1)
    # Both scaled before the product, so that half precision does not overflow.
    scale = 1 / math.sqrt(math.sqrt(query.shape[2]))
    weights = torch.einsum("bhct,bhcs->bhts", query * scale, key * scale)
    weights = weights.float().softmax(dim=-1).to(weights.dtype)
    return torch.einsum("bhts,bhcs->bhct", weights, value).reshape(batch, width // 3, length)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, with a shortcut."""

    def __init__(self, channels: int, heads: int, *, heads_first: bool) -> None:
        super().__init__()
        self.heads, self.heads_first = heads, heads_first
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) to the same shape."""
        pixels = x.flatten(2)
        mixed = attention(self.qkv(self.norm(pixels)), self.heads, heads_first=self.heads_first)
        return (pixels + self.proj_out(mixed)).reshape(x.shape)


class Stage(nn.ModuleList):
    """Layers in a row, of which residual blocks get the time embedding too."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, input: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            input = layer(input, time) if isinstance(layer, ResBlock) else layer(input)
        return input


class TimeEmbedding(nn.Sequential):
    """Timesteps (batch,), whole or not, to (batch, time_dim), in the weights' dtype."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(
            nn.Linear(config.model_channels, config.time_dim),
            nn.SiLU(),
            nn.Linear(config.time_dim, config.time_dim),
        )

    def forward(self, input: Tensor) -> Tensor:
        first = self[0]
        assert isinstance(first, nn.Linear)
        return super().forward(sinusoids(input, first.in_features).to(first.weight.dtype))


def input_blocks(config: NetworkConfig) -> tuple[nn.ModuleList, list[int]]:
    """The encoder: a convolution, then per level its residual blocks and, but for the last, the halving.

    Returns:
        The stages, and the channels that come out of each.
    """
    width = config.widths[0]
    stages = [Stage(nn.Conv2d(config.in_channels, width, 3, padding=1))]
    channels = [width]
    for level, wide in enumerate(config.widths):
        for _ in range(config.num_res_blocks):
            stages.append(Stage(ResBlock(width, wide, config), *attended(config, level, config.heads)))
            width = wide
            channels.append(width)
        if level + 1 < len(config.widths):
            stages.append(Stage(resampler(width, config, "down")))
            channels.append(width)
    return nn.ModuleList(stages), channels


def middle_block(width: int, config: NetworkConfig) -> Stage:
    """Two residual blocks with attention between."""
    return Stage(ResBlock(width, width, config), _attention(width, config, config.heads),
                 ResBlock(width, width, config))  # fmt: skip


def attended(config: NetworkConfig, level: int, heads: Callable[[int], int]) -> Iterator[AttentionBlock]:
    """The attention after a residual block of this level, where there is one."""
    if 2**level in (config.attention_resolutions or ()):
        yield _attention(config.widths[level], config, heads)


def resampler(width: int, config: NetworkConfig, resize: Resize) -> nn.Module:
    """What halves or doubles the size between two levels."""
    if config.resblock_updown:
        return ResBlock(width, width, config, resize)
    return Resample(width, resize, learned=config.conv_resample)


def _attention(width: int, config: NetworkConfig, heads: Callable[[int], int]) -> AttentionBlock:
    return AttentionBlock(width, heads(width), heads_first=not config.use_new_attention_order)
