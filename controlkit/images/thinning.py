"""Thin binary lines to a width of one pixel, in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def thin(on: Tensor, passes: int) -> Tensor:
    """Peel strokes from both sides until one pixel is left, without breaking them.

    Args:
        on: (n, 1, H, W), 0 or 1.
        passes: Most rounds; half the stroke's width is enough.

    Returns:
        The same shape, 0 or 1.

    Source:
        Zhang and Suen (1984), "A fast parallel algorithm for thinning digital patterns", CACM 27(3).
    """
    dtype, on = on.dtype, on.to(torch.uint8)
    for _ in range(passes):
        before = on
        for corner in (0, 1):
            on = _half_pass(on, corner)
        if torch.equal(before, on):
            break
    return on.to(dtype)


def _half_pass(on: Tensor, corner: int) -> Tensor:
    """Take border pixels away: south-east ones (0), or north-west ones (1)."""
    padded = F.pad(on, (1, 1, 1, 1))
    height, width = on.shape[-2:]
    around = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    ring = [padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in around]
    neighbours, rises = torch.zeros_like(on), torch.zeros_like(on)
    for here, after in zip(ring, ring[1:] + ring[:1], strict=True):
        neighbours += here
        rises += ~here & after & 1
    north, east, south, west = ring[0], ring[2], ring[4], ring[6]
    kept = east & south & (north | west) if corner == 0 else north & west & (east | south)
    removable = (neighbours >= 2) & (neighbours <= 6) & (rises == 1) & (kept == 0)
    left = on & ~removable.to(on.dtype)
    # A lone square of 2 x 2 would vanish whole; its first pixel stays.
    gone = on & (F.max_pool2d(left.float(), 3, stride=1, padding=1) == 0).to(on.dtype)
    return left | (gone & ~(ring[7] | ring[0] | ring[6]) & 1)
