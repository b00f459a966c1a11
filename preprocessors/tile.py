"""Tile: the picture at lower resolution, for models that add detail."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, opencv


@dataclass(frozen=True)
class Tile(Detector):
    """The picture shrunk and enlarged again, for ``tile`` ControlNets.

    With ``factor=1`` the map is the picture itself, which is what upscaling by tiles wants.

    Source:
        Zhang, "ControlNet 1.1 Tile" (2023): trained on pictures shrunk eightfold. OpenCV ``resize``, area
        when shrinking and cubic when enlarging.
    """

    name = "tile"
    family = "tile"
    meaning = "the picture at lower resolution"
    extra = REQUIREMENT

    factor: float = option(8.0, low=1, high=64, meaning="how many times smaller each side is made")

    def detect(self, photo: Pixels) -> Pixels:
        if self.factor == 1:
            return photo.copy()
        cv2 = opencv()
        height, width = photo.shape[:2]
        small = max(1, round(width / self.factor)), max(1, round(height / self.factor))
        shrunk = cv2.resize(photo, small, interpolation=cv2.INTER_AREA)
        return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC)
