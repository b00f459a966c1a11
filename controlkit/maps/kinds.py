"""What does a picture look like: a photograph, lines, a depth map, labels, …? One rule after the other.

Each rule compares measurements (`statistics.py`) with thresholds. Where each lies, and why:

- *normal*: 85 % of the pixels, read as 2 v - 1, are unit vectors towards the viewer: what a normal map is by
  definition. Photographs chosen from reach 0.33.
- *grid*, *labels*: 48 colours cover 97 % and 85 % of neighbours are equal, as no camera makes them. Labels
  are known when 95 % of the pixels are within 2 levels of one palette's colours; *blended* by resizing or
  JPEG when 45 % are within 8 levels (80 % where they are drawn like labels): photographs reach 0.35.
- *pose*: 60 % is black, the rest is vivid and thin.
- *lines*: gray, and the mean step between neighbours is over 0.26 of the mean brightness: a line of width w
  has about 2 / w, in the unit of a pixel at 256. Gray photographs and depth maps are below 0.21, strokes and
  soft edges above 0.3. Where half is black, over 0.12: broad soft lines; depth maps have 0.02 there.
  *inverted*: the negative has it more.
- *depth*: gray, and most second differences are at most 1.1 levels, which is rounding alone; sensors and
  texture give more.
- *blank*: all pixels within 4 levels of 255.

The thresholds were chosen on `TUNING` of tests/maps/pictures.py and are measured on other pictures there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from controlkit.maps.statistics import SIDE, Statistics, measure

Kind = Literal[
    "blank", "normal", "grid", "labels", "blended labels", "other labels", "pose", "photograph",
    "gray photograph", "lines", "inverted", "two tones", "depth", "small",
]  # fmt: skip

SMALLEST = 32
"""Pictures with a shorter side are too small to tell, but for blank ones."""


@dataclass(frozen=True)
class Likeness:
    """What a picture looks like.

    Args:
        kind: The kind.
        sure: From 0.5, where the measurement that decided lies on its threshold, to 1, where every
            one is far from its own.
        statistics: The measurements.
    """

    kind: Kind
    sure: float
    statistics: Statistics


def likeness(pixels: NDArray[np.float32], palettes: Mapping[str, Sequence[tuple[int, int, int]]]) -> Likeness:
    """Tell what a picture, (H, W, 3) in [0, 1], looks like."""
    found = measure(pixels)
    if found.extent <= 4 / 255:
        return Likeness("blank", 1.0, found)
    if min(pixels.shape[:2]) < SMALLEST:
        return Likeness("small", 0.5, found)
    margins: list[float] = []

    def above(value: float, threshold: float, far: float) -> bool:
        """Whether a value is over its threshold; ``far``: the distance at which that is certain."""
        margins.append(min(abs(value - threshold) / far, 1.0))
        return value > threshold

    def decided(kind: Kind) -> Likeness:
        return Likeness(kind, 0.5 + 0.5 * min(margins), found)

    drawn = found.few > 0.97 and found.flat > 0.85
    if drawn and found.colourful > 0.02 and found.unit < 0.999:
        known = max(_share(pixels, colours, 2) for colours in palettes.values())
        if known > 0.95:
            above(known, 0.95, 0.05)
            return decided("labels")
    if above(found.unit, 0.85, 0.1):
        return decided("normal")
    thin = found.vivid > 0.8 and found.colourful > 0.002  # coloured lines on black
    if found.colourful > 0.02 or thin:
        if found.dark > 0.6 and found.vivid > 0.7 and above(found.bright_ridges, 0.3, 0.1):
            return decided("pose")
        near = max(_share(pixels, colours, 8) for colours in palettes.values())
        if near > (0.8 if drawn else 0.45):
            above(near, 0.8 if drawn else 0.45, 0.1)
            return decided("blended labels")
        if drawn:
            margins.append(min((found.few - 0.97) / 0.02, (found.flat - 0.85) / 0.05, 1.0))
            return decided("grid" if found.grid < 0.05 else "other labels")
        above(found.colourful, 0.002 if thin else 0.02, 0.05)
        return decided("photograph")
    above(found.colourful, 0.02, 0.015)
    sparse = max(found.dark, found.bright) > 0.5
    if above(max(found.bright_ridges, found.dark_ridges), 0.12 if sparse else 0.26, 0.06):
        above(found.bright_ridges - found.dark_ridges, 0.0, 0.05)
        return decided("lines" if found.bright_ridges > found.dark_ridges else "inverted")
    if drawn and found.grid < 0.05:
        return decided("grid")
    if found.tones <= 4:
        return decided("two tones")
    return decided("gray photograph" if above(found.texture, 1.1, 1.0) else "depth")


def _share(pixels: NDArray[np.float32], colours: Sequence[tuple[int, int, int]], levels: int) -> float:
    """Share of pixels within so many levels of 255 of a colour of the palette."""
    step = math.ceil(max(pixels.shape[:2]) / SIDE)
    codes = np.rint(pixels[::step, ::step].reshape(-1, 3) * 255).astype(np.int32)
    packed, counts = np.unique(codes @ np.array([65536, 256, 1], np.int32), return_counts=True)
    each = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    table = np.asarray(colours, np.int32)
    near = (np.abs(each[:, None] - table[None]).max(axis=2) <= levels).any(axis=1)
    return float(counts[near].sum() / counts.sum())
