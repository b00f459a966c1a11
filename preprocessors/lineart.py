"""Line art: the drawing in a picture, as white strokes of varying strength on black."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian


@dataclass(frozen=True)
class Lineart(Detector):
    """Dark lines of a photograph or drawing as soft white strokes on black, for ``lineart`` ControlNets.

    A pixel belongs to a line as far as it is darker than its surroundings in every colour channel. The
    strokes' typical strength is brought to half of full white.

    Source:
        Difference of a picture and its Gaussian blur, the "standard" lineart preprocessor of the ControlNet
        1.1 lineart models; OpenCV ``GaussianBlur``.
    """

    name = "lineart"
    family = "lineart"
    meaning = "soft strokes where the picture is darker than around, white on black"
    extra = REQUIREMENT
    marks = True

    gaussian_sigma: float = option(
        6.0, low=0.5, high=60, unit="pixels", meaning="size of the surroundings; larger gives broader strokes"
    )
    intensity_threshold: int = option(
        8, low=0, high=64, unit="levels of 255", meaning="differences up to this do not count as strokes"
    )

    def detect(self, photo: Pixels) -> Pixels:
        values = photo.astype(np.float32)
        darker = (gaussian(values, self.gaussian_sigma) - values).min(axis=2).clip(min=0)
        strokes = darker[darker > self.intensity_threshold]
        typical = max(16.0, float(np.median(strokes))) if strokes.size else 16.0
        return (darker * (127 / typical)).clip(0, 255).astype(np.uint8)
