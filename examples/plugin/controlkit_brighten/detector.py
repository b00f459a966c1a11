"""A detector: gray values pulled away from the middle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors import Detector, option
from controlkit.preprocessors.base import Pixels


@dataclass(frozen=True)
class Contrast(Detector):
    """Gray with more contrast."""

    name = "contrast"
    family = "brighten"
    meaning = "brightness, pulled away from the middle"

    factor: float = option(2.0, meaning="how far values are pulled from 128", low=0.1, high=10.0)

    def detect(self, photo: Pixels) -> Pixels:
        gray = photo.astype(np.float32).mean(axis=2)
        return np.clip((gray - 128) * self.factor + 128, 0, 255).astype(np.uint8)
