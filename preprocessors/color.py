"""Color: a coarse grid of the picture's colours."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, opencv


@dataclass(frozen=True)
class Color(Detector):
    """Flat squares of the mean colour, for the ``color`` T2I-Adapter.

    Source:
        Mou et al. (2023), "T2I-Adapter", arXiv:2302.08453, section 4: 64-fold shrinking and enlarging by
        nearest neighbour. They shrink bicubically, which looks at 16 pixels of a square; this takes the mean
        of all. OpenCV ``resize``.
    """

    name = "color"
    family = "color"
    meaning = "squares of mean colour"
    extra = REQUIREMENT

    cell: int = option(64, low=1, high=512, unit="pixels", meaning="side of a square, about")

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        height, width = photo.shape[:2]
        grid = max(1, round(width / self.cell)), max(1, round(height / self.cell))
        means = cv2.resize(photo, grid, interpolation=cv2.INTER_AREA)
        return cv2.resize(means, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
