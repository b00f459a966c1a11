"""Shuffle: the picture's colours and materials, out of place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlkit.errors import HintTooBig
from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, opencv

_LONGEST = 32766
"""Longest side that ``cv2.remap`` takes."""


@dataclass(frozen=True)
class Shuffle(Detector):
    """Content pulled about by a smooth random flow, for ``shuffle`` ControlNets: style without composition.

    Source:
        Zhang, "ControlNet 1.1 Shuffle" (2023): every pixel is fetched from a place that a smooth random field
        gives. OpenCV ``remap``.
    """

    name = "shuffle"
    family = "shuffle"
    meaning = "the picture pulled about at random"
    extra = REQUIREMENT

    seed: int = option(0, low=0, high=2**32 - 1, meaning="which shuffle; the same seed gives the same one")
    scale: int = option(256, low=8, high=4096, unit="pixels", meaning="distance over which the flow turns")

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        height, width = photo.shape[:2]
        if max(height, width) > _LONGEST:
            raise HintTooBig(
                "image for shuffle",
                found=f"{width} x {height} pixels",
                expected=f"sides of at most {_LONGEST}",
                fix="Shrink it, or pass size=.",
            )
        random = np.random.default_rng(self.seed)
        across = self._field(random, height, width) * (width - 1)
        down = self._field(random, height, width) * (height - 1)
        return cv2.remap(photo, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

    def _field(self, random: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
        """Smooth noise, (height, width) in [0, 1], both ends reached unless it is a single pixel."""
        cv2 = opencv()
        rows, columns = height // self.scale + 2, width // self.scale + 2
        coarse = random.random((rows, columns), dtype=np.float32)
        full = cv2.resize(coarse, (columns * self.scale, rows * self.scale), interpolation=cv2.INTER_CUBIC)
        top, left = random.integers(0, self.scale + 1, size=2)
        window = full[top : top + height, left : left + width]
        low, high = float(window.min()), float(window.max())
        return np.ascontiguousarray((window - low) / max(high - low, 1e-6), dtype=np.float32)
