"""Guidance by colour: of the whole picture or a region, or coarsely that of another picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, cast

import torch
from PIL import ImageColor
from torch import Tensor
from torch.nn import functional as F

from controlkit.contracts import RunInfo
from controlkit.errors import ParameterError
from controlkit.guidance.likelihood import BoundPhi, Likelihood, Sees, per_image
from controlkit.guidance.pixels import read_region
from controlkit.guidance.targets import (
    Compared,
    check_count,
    one_of,
    pictures_like,
    placed,
    positive,
    read_pictures,
    squares,
)

Match = Literal["mean", "palette"]
_EXPECTED = "a colour ('red', '#e22c28', (226, 44, 40)), several of them, or a picture"


@dataclass(frozen=True, eq=False)
class Wanted:
    """What was asked for: colours (n, 3) in [0, 1], or pictures."""

    colours: Tensor | None = None
    pictures: Tensor | list[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Colour(Compared):
    """See `color`."""

    match: Match
    mask: Tensor | None
    size: int
    sigma: float
    weight: float
    sees: Sees = "image"
    channels: int | None = 3

    def read(self, y: Any) -> Wanted:
        if isinstance(y, Wanted):
            return y
        colours = read_colours(y)
        if colours is not None:
            return Wanted(colours=colours)
        if self.match == "palette":
            raise ParameterError(
                "y", found=f"a {type(y).__name__}", expected="a list of colours, the palette"
            )
        if self.mask is not None:
            raise ParameterError(
                "y",
                found="a picture, beside a mask",
                expected="a colour",
                fix="Give the mask to Guidance, or ask for a colour.",
            )
        return Wanted(pictures=read_pictures(y))

    def count(self, y: Wanted) -> int:
        if self.match == "palette":
            return 1
        given = y.pictures if y.colours is None else y.colours
        assert given is not None
        return len(given)

    def bind(self, name: str, y: Any, run: RunInfo) -> BoundPhi:
        if self.mask is not None:
            check_count(f"{name}: mask", len(self.mask), run)
        return super().bind(name, y, run)

    def fitted(self, y: Wanted, seen: Tensor) -> tuple[Tensor, Tensor | None]:
        mask = None if self.mask is None else pictures_like(self.mask, seen)
        if y.colours is not None:
            return placed(y.colours, seen)[:, :, None, None], mask
        assert y.pictures is not None
        return _coarse(pictures_like(y.pictures, seen), self.size), mask

    def value(self, x: Tensor, goal: tuple[Tensor, Tensor | None], t: Tensor) -> Tensor:
        x, wanted = (x + 1) / 2, goal[0]
        mask = None if goal[1] is None else per_image(goal[1], x.shape[0])
        spread = 2 * self.sigma**2
        if self.match == "palette":
            distances = ((x[:, None] - wanted[None]) ** 2).sum(2) / spread
            fits = torch.logsumexp(-distances, dim=1, keepdim=True)
            where = torch.ones_like(fits) if mask is None else mask
            return self.weight * (fits * where).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp_min(1e-12)
        wanted = per_image(wanted, x.shape[0])
        if wanted.shape[-1] > 1:
            return self.weight * -squares(_coarse(x, self.size) - wanted) / spread
        where = torch.ones_like(x[:, :1]) if mask is None else mask
        mean = (x * where).sum((2, 3)) / where.sum((2, 3)).clamp_min(1e-12)
        return self.weight * -((mean - wanted[..., 0, 0]) ** 2).sum(1) / spread


def color(
    *,
    match: Match = "mean",
    mask: Any = None,
    size: int = 8,
    sigma: float = 0.1,
    weight: float = 32.0,
) -> Likelihood:
    """Towards colours: -|mean - y|² / (2 σ²) of the picture's or a region's mean colour.

    The target is a colour: a name or ``#rrggbb`` as CSS has them, or (red, green, blue) of whole numbers in
    0..255 or floats in [0, 1]; or a list with one per prompt or picture. Or it is a picture (or one per
    prompt): then its colours are wanted where it has them, averaged over ``size`` x ``size`` fields. Sees the
    predicted picture; costs its decoding and no network.

    Args:
        match: ``mean``, or ``palette``: every pixel near one of the colours of a list, ln Σ_k exp(-|x - y_k|²
            / (2 σ²)), the mean over pixels.
        mask: Region whose colour is meant, in [0, 1]; None: the whole picture.
        size: Fields a side into which pictures are averaged.
        sigma: Standard deviation of a channel, above 0; 1 is from black to white.
        weight: Independent measurements that it counts as.

    Raises:
        HintError: A mask that cannot be read.
        ParameterError: An unknown ``match``, an empty mask, or a number out of its range.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 1024:
        raise ParameterError("size", found=f"{size!r:.60}", expected="a whole number from 1 to 1024")
    return Colour(
        one_of("match", match, ("mean", "palette")),
        None if mask is None else read_region("mask", mask),
        size,
        positive("sigma", sigma),
        positive("weight", weight),
    )


def read_colours(y: Any) -> Tensor | None:
    """Colours as (n, 3) float32 in [0, 1]; None where ``y`` holds no colour and may be a picture.

    Raises:
        ParameterError: A text that is no colour, or numbers that are none.
    """
    if isinstance(y, str) or _is_triple(y):
        return torch.tensor([_one(y)])
    if isinstance(y, list | tuple) and y and all(isinstance(part, str) or _is_triple(part) for part in y):
        return torch.tensor([_one(part) for part in y])
    if y is None or isinstance(y, Real | bytes | dict):
        raise ParameterError("y", found=f"{y!r:.60}", expected=_EXPECTED)
    if isinstance(y, list | tuple) and any(isinstance(part, Real) for part in y):
        raise ParameterError("y", found=f"{len(y)} numbers", expected=_EXPECTED)
    return None


def _is_triple(y: Any) -> bool:
    return isinstance(y, list | tuple) and len(y) == 3 and all(isinstance(value, Real) for value in y)


def _one(y: str | Sequence[float]) -> tuple[float, float, float]:
    expected = "a colour: a name such as 'red', '#rrggbb', or (red, green, blue)"
    if isinstance(y, str):
        try:
            red, green, blue, *_ = ImageColor.getrgb(y.strip())
        except ValueError:
            raise ParameterError("y", found=f"{y!r:.60}", expected=expected) from None
        return red / 255, green / 255, blue / 255
    whole = all(isinstance(value, int) for value in y) or any(value > 1 for value in y)
    high = 255 if whole else 1
    if not all(0 <= value <= high for value in y) or any(isinstance(value, bool) for value in y):
        raise ParameterError("y", found=f"{tuple(y)!r:.60}", expected=f"{expected}, each from 0 to {high}")
    return cast(tuple[float, float, float], tuple(float(value) / high for value in y))


def _coarse(x: Tensor, size: int) -> Tensor:
    return F.adaptive_avg_pool2d(x, (min(size, x.shape[-2]), min(size, x.shape[-1])))
