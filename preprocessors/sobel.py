"""Soft edges from gradients: every edge, as bright as it is strong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, opencv


@dataclass(frozen=True)
class Sobel(Detector):
    """Edge strength, white on black, a stand-in for learned soft edges where no weights are at hand.

    The strongest channel's gradient counts. The 99th percentile becomes white; a picture whose gradients are
    all below 16 of 255 is not amplified further. HED and PiDiNet are better at leaving texture out.

    Source:
        Scharr's 3x3 derivative, OpenCV ``Scharr``.
    """

    name = "sobel"
    family = "softedge"
    meaning = "edges as bright as they are strong, white on black"
    extra = REQUIREMENT
    marks = True

    sigma: float = option(1.5, low=0, high=20, unit="pixels", meaning="blur before looking, against texture")
    gamma: float = option(1.0, low=0.25, high=4, meaning="above 1 darkens weak edges, below 1 lifts them")

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        values = photo.astype(np.float32)
        if self.sigma > 0:
            values = gaussian(values, self.sigma)
        across, down = (cv2.Scharr(values, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
        strength = np.hypot(across, down).reshape(photo.shape).max(axis=2) / 16
        white = max(16.0, float(np.percentile(strength, 99)))
        return np.rint(255 * (strength / white).clip(0, 1) ** self.gamma).astype(np.uint8)
