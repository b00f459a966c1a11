"""Straight lines: the edges of buildings, rooms and furniture, as thin white lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, luma, opencv


@dataclass(frozen=True)
class Lines(Detector):
    """Straight segments, white on black, in the look of M-LSD's maps, for ``mlsd`` ControlNets.

    Both sides of a thin bar give a line each, and a curve gives none, or a few chords. The learned M-LSD
    leaves more texture out; ``length`` and ``sigma`` do so here.

    Source:
        von Gioi, Jakubowicz, Morel, Randall (2012), "LSD: a line segment detector", IPOL 2, by OpenCV's
        ``createLineSegmentDetector`` with its own defaults; drawn by OpenCV ``line``.
    """

    name = "lines"
    family = "mlsd"
    meaning = "straight segments, white on black"
    extra = REQUIREMENT
    marks = True

    length: float = option(
        24.0, low=0, high=4096, unit="pixels", meaning="segments shorter than this are dropped"
    )
    thickness: int = option(1, low=1, high=16, unit="pixels", meaning="width of the lines")
    sigma: float = option(
        0.0, low=0, high=20, unit="pixels", meaning="blur before looking, against texture and noise"
    )

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        gray = luma(photo)
        if self.sigma > 0:
            gray = np.rint(gaussian(gray.astype(np.float32), self.sigma)).clip(0, 255).astype(np.uint8)
        found = cv2.createLineSegmentDetector().detect(gray)[0]
        drawn = np.zeros(photo.shape[:2], np.uint8)
        for left, top, right, bottom in np.empty((0, 4)) if found is None else found.reshape(-1, 4):
            if np.hypot(right - left, bottom - top) >= self.length:
                ends = (round(float(left)), round(float(top))), (round(float(right)), round(float(bottom)))
                cv2.line(drawn, *ends, 255, self.thickness)
        return drawn
