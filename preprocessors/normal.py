"""Normals: which way each surface faces, from a depth map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.depth import Depth
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, luma, opencv, unit


@dataclass(frozen=True)
class Normal(Detector):
    """Directions of surfaces as colours, for ``normal`` ControlNets: red left, green up, blue to the viewer.

    Each channel is 127.5 + 127.5 times that part of the unit vector; (128, 128, 255) faces the viewer.
    From a photograph the depth is guessed first (`Depth`), and is as weak as that; give a depth map where
    there is one.

    Source:
        ControlNet 1.0's normal maps (2023): the gradient of the depth, near being large, beside a constant,
        made a unit vector. OpenCV ``Scharr``.
    """

    name = "normal"
    family = "normal"
    meaning = "directions of surfaces: red left, green up, blue to the viewer"
    extra = REQUIREMENT

    source: str = option("photo", choices=("photo", "depth"), meaning="the input: a photo, or a depth map")
    near: str = option("bright", choices=("bright", "dark"), meaning="depth: which side of the map is near")
    relief: float = option(
        0.5, low=0.01, high=10, unit="shortest sides", meaning="how far the farthest lies behind the nearest"
    )
    sigma: float = option(
        2.0, low=0, high=50, unit="pixels", meaning="blur of the depth beforehand, against steps of 8 bits"
    )
    background: float = option(
        0.0, low=0, high=1, meaning="what is farther than this share of all depths faces the viewer"
    )

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        depth = Depth().nearness(photo) if self.source == "photo" else unit(luma(photo))
        depth = np.float32(1) - depth if self.source == "depth" and self.near == "dark" else depth
        smooth = gaussian(depth, self.sigma) if self.sigma > 0 else depth
        height = smooth * np.float32(self.relief * min(photo.shape[:2]))
        across, down = (cv2.Scharr(height, cv2.CV_32F, *axis) / 32 for axis in ((1, 0), (0, 1)))
        facing = np.dstack([across, down, np.ones_like(across)]).reshape(photo.shape)
        facing[depth < self.background] = (0, 0, 1)
        facing /= np.linalg.norm(facing, axis=2, keepdims=True)
        return np.rint(127.5 + 127.5 * facing).clip(0, 255).astype(np.uint8)
