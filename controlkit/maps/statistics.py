"""What is measured of a picture to tell which kind of map it is: a few numbers, in milliseconds.

Two reduced copies are looked at: every k-th pixel as it is (exact colours, exact steps between neighbours),
and means of k x k pixels (shapes at about 256 pixels, so that a large photograph counts like a small one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 256
"""About the longest side of what is looked at, in pixels."""


@dataclass(frozen=True)
class Statistics:
    """Measurements of one picture; shares are of its pixels, brightness is the mean of the channels.

    Args:
        extent: Largest minus smallest value of all pixels, the largest over the channels.
        colourful: Share whose channels differ by more than 0.1.
        vivid: The same among the pixels that are not dark.
        dark: Share darker than 0.12.
        bright: Share brighter than 0.88.
        bright_ridges: Mean step between neighbours over mean brightness: high where bright things are thin.
        dark_ridges: The same of the negative.
        texture: 60th percentile of the second difference between neighbours, in levels of 255.
        few: Share that the 48 commonest colours cover.
        tones: Number of distinct gray values.
        flat: Share of neighbours that are equal to half a level of 255.
        unit: Share that is a unit vector towards the viewer, read as a surface normal.
        grid: Share of rows and columns, the larger of the two, in which a value changes.
        rise: Brightness of the bottom third less that of the top third, over the standard deviation.
    """

    extent: float
    colourful: float
    vivid: float
    dark: float
    bright: float
    bright_ridges: float
    dark_ridges: float
    texture: float
    few: float
    tones: int
    flat: float
    unit: float
    grid: float
    rise: float


def measure(pixels: NDArray[np.float32]) -> Statistics:
    """Measure a picture, (H, W, 3) in [0, 1]."""
    height, width = pixels.shape[:2]
    step = math.ceil(max(height, width) / SIDE)
    sample = pixels[::step, ::step]
    chroma = sample.max(axis=2) - sample.min(axis=2)
    luma = sample.mean(axis=2)
    lit = luma > 0.12
    reduced = _means(pixels.mean(axis=2), step)
    slope = _slope(reduced)
    across, down = _steps(pixels, step)
    level = 0.5 / 255
    moves_across, moves_down = across > level, down > level
    mean = float(reduced.mean())
    return Statistics(
        extent=float((pixels.max(axis=(0, 1)) - pixels.min(axis=(0, 1))).max()),
        colourful=float((chroma > 0.1).mean()),
        vivid=float((chroma[lit] > 0.1).mean()) if lit.any() else 0.0,
        dark=float((luma < 0.12).mean()),
        bright=float((luma > 0.88).mean()),
        bright_ridges=slope / max(mean, 1e-4),
        dark_ridges=slope / max(1 - mean, 1e-4),
        texture=_texture(pixels, step),
        few=_few(sample),
        tones=len(np.unique(np.rint(luma * 255))),
        flat=1 - float(np.concatenate([moves_across.ravel(), moves_down.ravel()]).mean())
        if across.size + down.size
        else 1.0,
        unit=_unit(sample),
        grid=max(_lines(moves_across, 0), _lines(moves_down, 1)),
        rise=_rise(reduced),
    )


def _means(luma: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    height, width = luma.shape
    rows, columns = min(step, height), min(step, width)
    whole = luma[: height // rows * rows, : width // columns * columns]
    return whole.reshape(height // rows, rows, width // columns, columns).mean(axis=(1, 3))


def _slope(luma: NDArray[np.float32]) -> float:
    parts = [np.abs(np.diff(luma, axis=axis)).mean() for axis in (0, 1) if luma.shape[axis] > 1]
    return float(sum(parts))


def _steps(pixels: NDArray[np.float32], step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Steps to the right and downward, at the full size, in every k-th row or column."""
    across = np.abs(np.diff(pixels[::step], axis=1)).max(axis=2)
    down = np.abs(np.diff(pixels[:, ::step], axis=0)).max(axis=2)
    return across, down


def _texture(pixels: NDArray[np.float32], step: int) -> float:
    luma = pixels[::step].mean(axis=2)
    if luma.shape[1] < 3:
        return 0.0
    second = np.abs(luma[:, :-2] - 2 * luma[:, 1:-1] + luma[:, 2:])
    return float(np.percentile(second, 60)) * 255


def _few(sample: NDArray[np.float32]) -> float:
    codes = np.rint(sample * 255).astype(np.int64).reshape(-1, 3) @ np.array([65536, 256, 1])
    counts = np.sort(np.unique(codes, return_counts=True)[1])[::-1]
    return float(counts[:48].sum() / counts.sum())


def _unit(sample: NDArray[np.float32]) -> float:
    vectors = sample * 2 - 1
    length = np.sqrt((vectors**2).sum(axis=2))
    return float(((np.abs(length - 1) < 0.1) & (vectors[..., 2] > -0.1)).mean())


def _lines(moves: NDArray[np.bool_], axis: int) -> float:
    return float((moves.mean(axis=axis) > 0.02).mean()) if moves.size else 0.0


def _rise(luma: NDArray[np.float32]) -> float:
    third = math.ceil(luma.shape[0] / 3)
    spread = float(luma.std())
    return float(luma[-third:].mean() - luma[:third].mean()) / spread if spread > 1e-4 else 0.0
