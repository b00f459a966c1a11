"""How a timestep, or any other number, becomes a vector that conditions a residual block.

Source:
    Ho et al. (2020), arXiv:2006.11239; the layout of diffusers 0.42 `models/embeddings.py`
    (`get_timestep_embedding`, `TimestepEmbedding`), to the bit in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(values: Tensor, dim: int, *, cosine_first: bool = True, shift: float = 0.0) -> Tensor:
    """Embed numbers as sines and cosines of geometrically spaced frequencies, from 1 to 1/10000.

    Args:
        values: (n,), any real numbers; timesteps, or SDXL's sizes in pixels.
        dim: Width of the embedding; an odd one ends in a zero.
        cosine_first: diffusers' ``flip_sin_to_cos``.
        shift: diffusers' ``freq_shift``; 1 makes the last frequency exactly 1/10000.

    Returns:
        (n, dim), float32 in [-1, 1].
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values[:, None].float() * torch.exp(exponent / (half - shift))[None, :]
    parts = (angles.cos(), angles.sin()) if cosine_first else (angles.sin(), angles.cos())
    embedding = torch.cat(parts, dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


class TimeMlp(nn.Module):
    """Two linear layers with a SiLU between: (n, inputs) to (n, width)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(embedding)))
