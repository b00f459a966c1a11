"""Guidance by what the picture shows, without any network: edges, and a reference inside a region.

Pixels are not independent: a sum over all of them would be far too sure of itself, the more the larger the
picture. Every function here is therefore a mean over pixels times ``weight``, the number of independent
measurements that it counts as, whatever the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from controlkit.binding import read_mask
from controlkit.contracts import RunInfo
from controlkit.errors import ParameterError
from controlkit.guidance.likelihood import BoundPhi, Likelihood, Sees, per_image
from controlkit.guidance.targets import (
    Compared,
    check_count,
    pictures_like,
    positive,
    read_pictures,
    squares,
)

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Edges(Compared):
    """See `edges`."""

    threshold: float
    weight: float
    sees: Sees = "image"
    channels: int | None = 3

    def read(self, y: Any) -> Tensor | list[Tensor]:
        return read_pictures(y, channels=1)

    def fitted(self, y: Tensor | list[Tensor], seen: Tensor) -> Tensor:
        return pictures_like(y, seen, labels="auto")

    def value(self, x: Tensor, goal: Tensor, t: Tensor) -> Tensor:
        lines = per_image(goal, x.shape[0])
        nowhere_near = 1 - F.max_pool2d(lines, 3, stride=1, padding=1)
        ratio = (edge_strength(x) / self.threshold) ** 2 + 1e-3
        best = F.max_pool2d(ratio, 3, stride=1, padding=1)
        on, off = -(1 + 1 / best).log(), -(1 + ratio).log()
        return self.weight * (_mean(on, lines) + _mean(off, nowhere_near)) / 2


def edges(*, threshold: float = 0.15, weight: float = 256.0) -> Likelihood:
    """Edges where the map has them, and none elsewhere. The target is an edge map, white lines on black.

    The probability of an edge at a pixel has the odds (strength / threshold)², strength being Sobel's
    gradient of the brightness; on the lines the strongest edge within one pixel counts, and pixels beside
    lines do not. The mean logarithm on the lines and that elsewhere count equally, so that few lines are
    heard. Sees the predicted picture; costs its decoding and no network.

    Args:
        threshold: Strength of an edge that may as well be none, above 0; 1 is a step from black to white.
        weight: Independent measurements that the map counts as.

    Raises:
        ParameterError: A number out of its range.
    """
    return Edges(positive("threshold", threshold), positive("weight", weight))


def edge_strength(x: Tensor) -> Tensor:
    """Sobel's gradient of the brightness, (images, 1, h, w); 1 is a step from black to white.

    Args:
        x: (images, 3, h, w) in [-1, 1].
    """
    gray = (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True) / 2
    across = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    kernels = torch.stack((across, across.mT))[:, None]
    gradient = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), kernels)
    return ((gradient**2).sum(1, keepdim=True) + 1e-12).sqrt()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Of (images, 1, h, w), weighted; 0 where the weights are."""
    return (values * where).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp_min(1e-6)


@dataclass(frozen=True, eq=False)
class Region(Compared):
    """See `region`."""

    mask: Tensor
    sigma: float
    weight: float
    sees: Sees = "image"
    channels: int | None = 3

    def read(self, y: Any) -> Tensor | list[Tensor]:
        return read_pictures(y)

    def bind(self, name: str, y: Any, run: RunInfo) -> BoundPhi:
        check_count(f"{name}: mask", len(self.mask), run)
        return super().bind(name, y, run)

    def fitted(self, y: Tensor | list[Tensor], seen: Tensor) -> tuple[Tensor, Tensor]:
        return pictures_like(y, seen) * 2 - 1, pictures_like(self.mask, seen)

    def value(self, x: Tensor, goal: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
        wanted, mask = (per_image(part, x.shape[0]) for part in goal)
        return self.weight * -squares((x - wanted) / 2, mask) / (2 * self.sigma**2)


def region(mask: Any, *, sigma: float = 0.1, weight: float = 128.0) -> Likelihood:
    """As a reference inside a region, anything outside: -|x - y|² / (2 σ²), the mean over the region.

    The target is the reference picture. Sees the predicted picture, so that reference and region are pixels,
    not latents; costs its decoding and no network. The region is what is kept (inpainting masks mark what
    is painted anew).

    Args:
        mask: Where the reference counts, in [0, 1]: a picture, or one per prompt or picture.
        sigma: Standard deviation of a pixel's channel from the reference, above 0; 1 is from black to white.
        weight: Independent pixels that the region counts as.

    Raises:
        HintError: A mask that cannot be read.
        ParameterError: A number out of its range, or a mask that is empty.
    """
    return Region(read_region("mask", mask), positive("sigma", sigma), positive("weight", weight))


def read_region(what: str, mask: Any) -> Tensor:
    """A mask, (n, 1, H, W) in [0, 1], none of them empty.

    Raises:
        HintError: It cannot be read.
        ParameterError: It is 0 everywhere.
    """
    rows = read_mask(mask)
    if not bool((rows.amax((1, 2, 3)) > 0).all()):
        raise ParameterError(what, found="0 everywhere", expected="a region", fix="1 is inside, 0 outside.")
    return rows
