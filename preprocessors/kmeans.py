"""K-means: the picture in a few flat colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, opencv, unit

_SAMPLE = 65_536
"""Pixels, evenly spread, in which the colours are looked for; each pixel is then given its nearest."""


@dataclass(frozen=True)
class KMeans(Detector):
    """The picture's main colours, every pixel in the nearest one, as posters and flat illustrations have it.

    It knows colours, not things; the same colour in two places is one class. The palette is the picture's.

    Source:
        Lloyd (1982), "Least squares quantization in PCM", IEEE IT 28(2), in CIELAB, started as Arthur and
        Vassilvitskii (2007), "k-means++", say: OpenCV ``kmeans``.
    """

    name = "kmeans"
    family = "regions"
    meaning = "a few flat colours, those of the picture (no palette of labels)"
    extra = REQUIREMENT

    colors: int = option(8, low=2, high=64, unit="colours", meaning="how many, at most")
    sigma: float = option(
        2.0, low=0, high=20, unit="pixels", meaning="blur beforehand, for smoother borders and fewer specks"
    )
    seed: int = option(
        0, low=0, high=2**31 - 1, meaning="where the search begins; the same gives the same map"
    )

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        values = unit(photo)
        if self.sigma > 0:
            values = gaussian(values, self.sigma).reshape(photo.shape)
        lab = cv2.cvtColor(values, cv2.COLOR_RGB2Lab).reshape(-1, 3)
        sample = np.ascontiguousarray(lab[:: -(-len(lab) // _SAMPLE)])
        count = min(self.colors, len(np.unique(sample, axis=0)))
        until = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.2)
        centres = sample[:1]
        if count > 1:
            cv2.setRNGSeed(self.seed)
            _, _, centres = cv2.kmeans(sample, count, None, until, 2, cv2.KMEANS_PP_CENTERS)
        colours = cv2.cvtColor(centres.reshape(1, -1, 3), cv2.COLOR_Lab2RGB).reshape(-1, 3)
        palette = np.rint(255 * colours).clip(0, 255).astype(np.uint8)
        return palette[_nearest(lab, centres)].reshape(photo.shape)


def _nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.intp]:
    """The number of the nearest centre of each point, in pieces that bound memory."""
    lengths = (centres**2).sum(axis=1)
    pieces = range(0, len(points), _SAMPLE)
    return np.concatenate(
        [(lengths - 2 * points[i : i + _SAMPLE] @ centres.T).argmin(axis=1) for i in pieces]
    )
