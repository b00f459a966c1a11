"""Threshold: a drawing or document as pure white strokes on black."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, luma, opencv


@dataclass(frozen=True)
class Threshold(Detector):
    """Every pixel fully on or off by its brightness (ITU-R 601 luma), for ``scribble`` and similar.

    For drawings, comics and documents. By default dark ink becomes white, as ControlNets expect strokes.

    Source:
        OpenCV ``threshold`` (fixed, Otsu) and ``adaptiveThreshold`` (Gaussian mean of the surroundings).
        Otsu (1979), "A threshold selection method from gray-level histograms", IEEE SMC 9(1).
    """

    name = "threshold"
    family = "scribble"
    meaning = "ink fully white, paper fully black"
    extra = REQUIREMENT
    marks = True

    method: str = option(
        "otsu",
        choices=("fixed", "otsu", "adaptive"),
        meaning="one given level, one level found in the picture, or a level for each place",
    )
    level: int = option(128, low=0, high=255, unit="levels of 255", meaning="fixed: brightness that divides")
    block: int = option(
        31, low=3, high=255, step=2, unit="pixels", meaning="adaptive: side of the surroundings, odd"
    )
    offset: float = option(
        8.0, low=-64, high=64, unit="levels of 255", meaning="adaptive: how much darker than around is ink"
    )
    ink: str = option("dark", choices=("dark", "bright"), meaning="which side becomes white")

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        gray = luma(photo)
        dark = self.ink == "dark"
        kind = cv2.THRESH_BINARY_INV if dark else cv2.THRESH_BINARY
        if self.method == "adaptive":
            offset = self.offset if dark else -self.offset
            return cv2.adaptiveThreshold(gray, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, kind, self.block, offset)
        if self.method == "otsu":
            kind |= cv2.THRESH_OTSU
        _, result = cv2.threshold(gray, self.level, 255, kind)
        return result
