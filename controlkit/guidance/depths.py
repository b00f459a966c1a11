"""Guidance by depth: what a depth network sees in the predicted picture, against a depth map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from controlkit.errors import HintError, ParameterError
from controlkit.guidance.likelihood import Likelihood, Sees, per_image
from controlkit.guidance.targets import (
    Network,
    OfNetwork,
    answer,
    one_of,
    pictures_like,
    placed,
    positive,
    processing,
    read_network,
    read_pictures,
    takes_times,
)


@dataclass(frozen=True, eq=False)
class Preparing:
    """What a network of its own kind wants done to pixels in [-1, 1]: nothing where all are None.

    Args:
        size: Height and width.
        mean: Of the channels in [0, 1], subtracted.
        std: Of the channels, divided by.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.size is not None and tuple(x.shape[-2:]) != tuple(self.size):
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True, align_corners=False)
        if self.mean is not None and self.std is not None:
            mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
            x = ((x + 1) / 2 - mean) / std
        return x


@dataclass(frozen=True, eq=False)
class Depth(OfNetwork):
    """See `depth`."""

    network: Network
    timed: bool
    preparing: Preparing
    sigma: float
    weight: float
    sees: Sees = "image"

    @property
    def channels(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 3 if self.sees == "image" else None

    def read(self, y: Any) -> Tensor | list[Tensor]:
        rows = read_pictures(y, channels=1)
        if any(float(row.std()) < 1e-4 for row in rows):
            raise HintError(
                "y",
                found="a depth map of one value",
                expected="one that varies",
                fix="Depth is compared up to scale and shift, so that a flat map says nothing.",
            )
        return rows

    def fitted(self, y: Tensor | list[Tensor], seen: Tensor) -> Tensor:
        if isinstance(y, list):
            return pictures_like(y, seen)
        return placed(y, seen)

    def value(self, x: Tensor, goal: Tensor, t: Tensor) -> Tensor:
        found = answer(self.network, self.preparing(x), t, timed=self.timed, part="predicted_depth")
        found = found[:, None] if found.ndim == 3 else found
        if found.ndim != 4 or found.shape[1] != 1:
            raise ParameterError(
                "network", found=f"depth of shape {tuple(found.shape)}", expected="(images, h, w)"
            )
        wanted = F.interpolate(goal, found.shape[-2:], mode="area")
        wanted = per_image(_aligned(wanted), x.shape[0])
        return self.weight * -((_aligned(found) - wanted) ** 2).mean((1, 2, 3)) / (2 * self.sigma**2)


def depth(
    network: Any,
    *,
    processor: Any = None,
    size: tuple[int, int] | None = None,
    sees: Sees = "image",
    sigma: float = 0.3,
    weight: float = 256.0,
) -> Likelihood:
    """Towards a depth map: -|network(x) - y|² / (2 σ²), the mean over pixels.

    Both sides are brought to mean 0 and deviation 1 first, as monocular networks know depth up to scale and
    shift only; the sign stays, so that near is bright in the map where it is large for the network (inverse
    depth, as MiDaS and Depth Anything have it). The target is the map, or one per prompt or picture. Costs
    one pass through the network and back, and the decoding.

    Args:
        network: net(x) or net(x, t) to (images, h, w), (images, 1, h, w), or an object with such a
            ``.predicted_depth``, as the depth models of transformers. It gets pixels in [-1, 1] as they
            are, unless a processor says more. When it is told times: see `classifier`.
        processor: Image processor of transformers that belongs to the network: its mean, deviation and size
            are used, its resizing is replaced by a differentiable one.
        size: Height and width that the network gets; None: the processor's, else the picture's own.
        sees: What the network reads: the ``image``, or ``noisy`` or ``clean`` latents.
        sigma: Standard deviation of the network's error, in deviations of the map.
        weight: Independent measurements that the map counts as.

    Raises:
        ParameterError: Something that cannot be called, or a number out of its range.

    Source:
        Ranftl et al. (2022), arXiv:1907.01341, section 5, for alignment by location and scale.
    """
    network = read_network("network", network)
    mean, std, sides = (None, None, None) if processor is None else processing(processor)
    if size is not None and (len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size)):
        raise ParameterError("size", found=f"{size!r:.60}", expected="(height, width), whole pixels above 0")
    preparing = Preparing(size or sides, mean, std)
    sees = cast(Sees, one_of("sees", sees, ("noisy", "clean", "image")))
    return Depth(
        network, takes_times(network), preparing, positive("sigma", sigma), positive("weight", weight), sees
    )


def _aligned(rows: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the pixels of each picture, (images, 1, h, w)."""
    centred = rows - rows.mean((1, 2, 3), keepdim=True)
    return centred / (centred.square().mean((1, 2, 3), keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
