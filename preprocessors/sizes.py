"""The size at which a detector looks at a photograph, and the way back to the photograph's own."""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from controlkit.errors import ParameterError
from controlkit.images.limits import check_pixels

Size: TypeAlias = int | tuple[int, int] | None
Resolution: TypeAlias = int | str | None

TRAINED = {"sd1": 512, "sd2": 768, "sdxl": 1024, "embedded": 128}
"""Shortest side in pixels of the maps that modules for a base model were trained on."""


def looked_at(photo: Image.Image, resolution: Resolution) -> Image.Image:
    """The photograph at the resolution of ``preprocess``: ``auto`` is that of SD 1.x.

    Raises:
        ParameterError: Neither a whole number above 0 nor ``auto``.
    """
    if resolution is None:
        return photo
    side: Any = TRAINED["sd1"] if resolution == "auto" else resolution
    if not isinstance(side, Integral) or isinstance(side, bool) or side < 1:
        raise ParameterError(
            "resolution",
            found=repr(resolution)[:80],
            expected="'auto', or the shortest side in whole pixels above 0",
            fix="For example 512.",
        )
    return resized(photo, int(side))


def brought_back(found: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A map, (H, W) or (H, W, 3) uint8, at (width, height): labels and one-pixel lines are never blurred."""
    if (found.shape[1], found.shape[0]) == size:
        return found
    import torch

    from controlkit.images import fit

    planes = torch.from_numpy(np.ascontiguousarray(found))
    planes = (planes[None] if found.ndim == 2 else planes.permute(2, 0, 1))[None].float() / 255
    fitted, _ = fit(planes, (size[1], size[0]))
    values = (fitted[0] * 255).round().clamp(0, 255).byte().numpy()
    return values[0] if found.ndim == 2 else values.transpose(1, 2, 0)


def resized(photo: Image.Image, size: Size) -> Image.Image:
    """The photograph at (width, height), or at a shortest side with its proportions kept.

    Raises:
        ParameterError: A size that is neither.
        HintTooBig: More pixels than the limit.
    """
    if size is None:
        return photo
    sides = _sides(size)
    if sides is None:
        raise ParameterError(
            "size",
            found=repr(size)[:80],
            expected="(width, height), or the shortest side, in whole pixels above 0",
            fix="For example 512, or image.size.",
        )
    if len(sides) == 1:
        factor = sides[0] / min(photo.size)
        sides = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    check_pixels(sides[0], sides[1], "size")
    return photo if sides == photo.size else photo.resize(sides, Image.Resampling.LANCZOS)


def _sides(size: object) -> tuple[int] | tuple[int, int] | None:
    """One or two positive whole numbers, or None where it is something else."""
    given = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    whole = [int(side) for side in given if isinstance(side, Integral) and not isinstance(side, bool)]
    if len(whole) != len(given) or len(whole) not in (1, 2) or min(whole) < 1:
        return None
    return (whole[0],) if len(whole) == 1 else (whole[0], whole[1])
