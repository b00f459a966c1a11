"""The transformer layers of CLIP, under CLIP's original parameter names (``attn.in_proj_weight``).

Source:
    Radford et al. (2021), arXiv:2103.00020; openai/CLIP `clip/model.py` (`ResidualAttentionBlock`), as
    TencentARC/T2I-Adapter@16bba674 `ldm/modules/encoders/adapter.py` uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WideNorm(nn.LayerNorm):
    """A layer norm that computes in float32 whatever it is given, and gives back what it was given."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class PackedAttention(nn.Module):
    """Multi-head self-attention whose query, key and value are one matrix, stacked in this order.

    Args:
        width: Of what comes in and goes out.
        heads: Number of heads; divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, width) to the same shape."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    """To four times the width and back, with CLIP's quick GELU, x σ(1.702 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))


class ClipLayer(nn.Module):
    """Attention and MLP, each after a norm and with a shortcut.

    Args:
        width: Of the tokens.
        heads: Number of heads; divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = PackedAttention(width, heads)
        self.ln_1 = WideNorm(width)
        self.mlp = _Mlp(width)
        self.ln_2 = WideNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, width) to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))
