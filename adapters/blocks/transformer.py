"""Attention over the pixels of a feature map and over the prompt's tokens.

Source:
    Rombach et al. (2022), arXiv:2112.10752; the operations and parameter names of diffusers 0.42
    (`Transformer2DModel`, `BasicTransformerBlock`, `AttnProcessor2_0`), to the bit in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From query (batch, n, dim), key and value (batch, m, dim), all heads side by side, and the number of heads,
to (batch, n, dim): ``softmax(q k^T / sqrt(dim / heads)) v`` in each head."""


def torch_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """An `Attend` by ``scaled_dot_product_attention``."""
    q, k, v = (
        part.view(part.shape[0], -1, heads, part.shape[-1] // heads).transpose(1, 2)
        for part in (query, key, value)
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)


@contextmanager
def attention_by(function: Attend) -> Generator[None]:
    """In which all `Attention` of this process computes by another function, such as the host's own.

    Implementations differ by rounding; a file shall give the same numbers as in the host's own network.
    """
    before = Attention.attend
    Attention.attend = staticmethod(function)
    try:
        yield
    finally:
        Attention.attend = staticmethod(before)


class Attention(nn.Module):
    """Multi-head attention without biases on query, key and value.

    Args:
        dim: Width of what asks and of the result.
        heads: Number of heads; divides ``dim``.
        context_dim: Width of what is asked; ``dim`` for self-attention.
    """

    attend: ClassVar[Attend] = staticmethod(torch_attention)

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, n, dim) and (batch, m, context_dim) to (batch, n, dim)."""
        context = x if context is None else context
        query, key, value = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(Attention.attend(query, key, value, self.heads))


class GatedLinear(nn.Module):
    """GEGLU: one half of a linear layer, gated by the GELU of the other (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. ``net.1`` is a dropout elsewhere, so it has no weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; each after a norm and with a shortcut."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(batch, n, dim), with tokens (batch, m, context_dim), to (batch, n, dim)."""
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), tokens) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer layers over the pixels of a feature map.

    Args:
        channels: Of the feature map.
        heads: Attention heads.
        context_dim: Width of the prompt's tokens.
        depth: Number of layers; 0 leaves the two projections.
        groups: Groups of the first norm.
        linear: Project with linear layers (SD 2, SDXL) and not with 1x1 convolutions (SD 1). The numbers
            are the same up to rounding, the weights' shapes are not.
    """

    def __init__(
        self, channels: int, heads: int, context_dim: int, *, depth: int, groups: int, linear: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerLayer(channels, heads, context_dim) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(batch, channels, h, w), with tokens (batch, n, context_dim), to (batch, channels, h, w)."""
        batch, channels, height, width = x.shape
        pixels = self.norm(x)
        if not self.linear:
            pixels = self.proj_in(pixels)
        pixels = pixels.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        if self.linear:
            pixels = self.proj_in(pixels)
        for layer in self.transformer_blocks:
            pixels = layer(pixels, tokens)
        if self.linear:
            pixels = self.proj_out(pixels)
        pixels = pixels.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        return (pixels if self.linear else self.proj_out(pixels)) + x
