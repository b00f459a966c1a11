"""Recolor: the picture's brightness alone, for models that paint the colours anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, opencv


@dataclass(frozen=True)
class Recolor(Detector):
    """The picture without colour, 0 black to 255 white, for ``recolor`` ControlNets.

    ``luminance`` is how bright a colour looks (L* of CIELAB); ``intensity`` is its strongest channel (V of
    HSV), which makes pure red as bright as white.

    Source:
        OpenCV ``cvtColor``, RGB to Lab and RGB to HSV.
    """

    name = "recolor"
    family = "recolor"
    meaning = "the picture in gray, black to white"
    extra = REQUIREMENT

    method: str = option(
        "luminance", choices=("luminance", "intensity"), meaning="brightness to the eye, or strongest channel"
    )
    gamma: float = option(
        1.0, low=0.1, high=4, meaning="above 1 darkens the middle tones, below 1 lifts them"
    )

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        if self.method == "luminance":
            gray = cv2.cvtColor(photo, cv2.COLOR_RGB2Lab)[..., 0]
        else:
            gray = cv2.cvtColor(photo, cv2.COLOR_RGB2HSV)[..., 2]
        if self.gamma == 1:
            return np.ascontiguousarray(gray)
        curve = np.rint(255 * (np.arange(256) / 255) ** self.gamma).astype(np.uint8)
        return curve[gray]
