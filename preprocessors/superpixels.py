"""Superpixels: the picture as flat regions along its outlines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.scikit import REQUIREMENT, scikit_image


@dataclass(frozen=True)
class Superpixels(Detector):
    """Neighbouring pixels of like colour as one region, painted in its mean colour.

    It knows shapes, not things: the colours are the picture's, no palette of labels. ControlNets for
    segmentation read their own palette (ADE20K), which takes a network.

    Source:
        ``slic``: Achanta et al. (2012), "SLIC superpixels", IEEE PAMI 34(11); its regions are merged where
        their mean colours differ by less than ``merge`` in CIELAB. ``felzenszwalb``: Felzenszwalb,
        Huttenlocher (2004), "Efficient graph-based image segmentation", IJCV 59(2), merged likewise.
        scikit-image ``slic``, ``felzenszwalb``, ``rag_mean_color``, ``cut_threshold``.
    """

    name = "superpixels"
    family = "regions"
    meaning = "regions along outlines, each in its mean colour (no palette of labels)"
    extra = REQUIREMENT

    method: str = option(
        "slic", choices=("slic", "felzenszwalb"), meaning="regions of like size, or of any size"
    )
    count: int = option(400, low=2, high=5000, unit="regions", meaning="slic: how many before merging, about")
    compactness: float = option(
        10.0, low=0.1, high=100, meaning="slic: above 10 regions are more square, below they hug outlines"
    )
    scale: float = option(200.0, low=1, high=5000, meaning="felzenszwalb: higher gives larger regions")
    merge: float = option(
        8.0,
        low=0,
        high=100,
        unit="CIELAB",
        meaning="neighbours whose colours differ less become one; 0: none",
    )

    def detect(self, photo: Pixels) -> Pixels:
        labels = self._regions(photo)
        if self.merge > 0 and labels.max() > labels.min():
            lab = scikit_image("color").rgb2lab(photo)
            graph = scikit_image("graph")
            neighbours = graph.rag_mean_color(lab, labels)
            labels = graph.cut_threshold(labels, neighbours, self.merge)
        return _in_mean_colours(photo, labels)

    def _regions(self, photo: Pixels) -> NDArray[Any]:
        """(height, width) region numbers from 0 on."""
        cut = scikit_image("segmentation")
        height, width = photo.shape[:2]
        if self.method == "felzenszwalb":
            least = max(1, height * width // 4000)
            return cut.felzenszwalb(photo, scale=self.scale, sigma=0.8, min_size=least)
        count = min(self.count, height * width)
        if count < 2:
            return np.zeros((height, width), np.int64)
        return cut.slic(photo, n_segments=count, compactness=self.compactness, start_label=0)


def _in_mean_colours(photo: Pixels, labels: NDArray[Any]) -> Pixels:
    """Every region of (height, width) in the mean of its pixels, rounded."""
    _, flat = np.unique(labels, return_inverse=True)
    flat = flat.reshape(-1)
    sizes = np.bincount(flat)
    sums = [np.bincount(flat, photo[..., channel].reshape(-1)) for channel in range(3)]
    means = np.rint(np.stack(sums, axis=1) / sizes[:, None]).astype(np.uint8)
    return means[flat].reshape(photo.shape)
