"""Line art: the drawing in a picture, as white strokes of varying strength on black."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, luma, opencv


@dataclass(frozen=True)
class Lineart(Detector):
    """Dark lines and outlines as soft white strokes on black, for ``lineart`` ControlNets.

    A pixel belongs to a stroke as far as it is darker than its surroundings. Strokes of the picture's typical
    strength come out at three quarters of full white. Line drawings want ``texture=0``.

    Source:
        Difference of two Gaussians with a soft threshold by tanh: Winnemöller, Kyprianidis, Olsen (2012),
        "XDoG: an extended difference-of-Gaussians compendium", Computers & Graphics 36(6). OpenCV
        ``bilateralFilter`` beforehand, as they advise against texture, and ``GaussianBlur``.
    """

    name = "lineart"
    family = "lineart"
    meaning = "soft strokes where the picture is darker than around, white on black"
    extra = REQUIREMENT
    marks = True

    sigma: float = option(
        2.5, low=1, high=40, unit="pixels", meaning="size of the surroundings; larger gives broader strokes"
    )
    threshold: float = option(
        2.0, low=0, high=64, unit="levels of 255", meaning="differences up to this are no strokes"
    )
    texture: float = option(
        30.0, low=0, high=150, unit="levels of 255", meaning="contrasts below this are smoothed away; 0: none"
    )

    def detect(self, photo: Pixels) -> Pixels:
        values = luma(photo)
        if self.texture > 0:
            values = opencv().bilateralFilter(values, 9, self.texture, 3)
        values = values.astype(np.float32)
        darker = gaussian(values, self.sigma) - gaussian(values, 0.3 * self.sigma) - self.threshold
        strokes = darker[darker > 2]
        typical = max(8.0, float(np.median(strokes))) if strokes.size else 8.0
        return np.rint(255 * np.tanh(darker.clip(min=0) / typical)).astype(np.uint8)
