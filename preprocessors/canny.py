"""Canny edges: thin white contours where brightness or colour jumps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, gradient, opencv


@dataclass(frozen=True)
class Canny(Detector):
    """Edges one pixel wide, white on black, for ``canny`` ControlNets and T2I-Adapters.

    Equal to ``cv2.Canny(photo, low_threshold, high_threshold, L2gradient=l2)`` on the RGB picture, of which
    it takes the strongest channel, as the published models were trained.

    With ``auto`` the thresholds come from the picture, so that a dim one shows its outlines and a busy one is
    not all edges: the high one is the 92nd percentile of its gradients, at least 40; the low one 0.4 of it.
    A little ``sigma`` calms fur, grass and noise.

    Source:
        Canny (1986), "A computational approach to edge detection", IEEE PAMI 8(6), which takes the
        thresholds from the histogram too; OpenCV ``Canny``.
    """

    name = "canny"
    family = "canny"
    meaning = "edges one pixel wide, white on black"
    extra = REQUIREMENT
    marks = True

    low_threshold: float = option(
        100.0,
        low=0,
        high=2040,
        unit="gradient",
        at_most="high_threshold",
        meaning="edges weaker than this are dropped",
    )
    high_threshold: float = option(
        200.0,
        low=0,
        high=2040,
        unit="gradient",
        meaning="edges stronger than this are kept; between the two, where they touch a strong one",
    )
    auto: bool = option(False, meaning="take both thresholds from the picture instead")
    l2: bool = option(False, meaning="measure gradients by their length, not by the sum of both sides")
    sigma: float = option(
        0.0, low=0, high=20, unit="pixels", meaning="blur before looking, against noise and texture"
    )

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        if self.sigma > 0:
            photo = np.rint(gaussian(photo.astype(np.float32), self.sigma)).astype(np.uint8)
        low, high = self.low_threshold, self.high_threshold
        if self.auto:
            high = max(40.0, float(np.percentile(gradient(photo, l2=self.l2), 92)))
            low = 0.4 * high
        return cv2.Canny(photo, low, high, L2gradient=self.l2)
