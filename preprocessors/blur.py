"""Blur: where light and colour are, without detail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian


@dataclass(frozen=True)
class Blur(Detector):
    """The picture without detail, for ``blur`` and ``tile`` ControlNets, which paint the detail back.

    Source:
        OpenCV ``GaussianBlur``.
    """

    name = "blur"
    family = "blur"
    meaning = "the picture, blurred"
    extra = REQUIREMENT

    sigma: float = option(9.0, low=0.1, high=100, unit="pixels", meaning="standard deviation of the blur")

    def detect(self, photo: Pixels) -> Pixels:
        return np.rint(gaussian(photo.astype(np.float32), self.sigma)).clip(0, 255).astype(np.uint8)
