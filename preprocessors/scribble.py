"""Scribbles: a few bold strokes, as a hand would draw the picture's outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, opencv


@dataclass(frozen=True)
class Scribble(Detector):
    """Bold white strokes on black, fully on or off, for ``scribble`` ControlNets.

    ``xdog`` marks what is darker than its surroundings in every channel, which draws shadows and dark parts
    as ink. ``edges`` follows the outlines of the larger shapes.

    Source:
        ``xdog``: Winnemoeller, Kyprianidis, Olsen (2012), "XDoG: an extended difference-of-Gaussians
        compendium", Computers & Graphics 36(6), with a hard threshold. ``edges``: OpenCV ``Canny`` on the
        blurred picture, without short pieces, widened by ``dilate``.
    """

    name = "scribble"
    family = "scribble"
    meaning = "bold strokes, white on black"
    extra = REQUIREMENT
    marks = True

    method: str = option("xdog", choices=("xdog", "edges"), meaning="what is drawn: dark parts, or outlines")
    threshold: float = option(
        16.0, low=1, high=127, unit="levels of 255", meaning="xdog: how much darker than around counts as ink"
    )
    sigma: float = option(
        5.0,
        low=0.8,
        high=40,
        unit="pixels",
        meaning="size of the surroundings (xdog), or twice the blur that removes detail (edges)",
    )
    thickness: int = option(4, low=1, high=32, unit="pixels", meaning="edges: width of the strokes")

    def detect(self, photo: Pixels) -> Pixels:
        return self._xdog(photo) if self.method == "xdog" else self._edges(photo)

    def _xdog(self, photo: Pixels) -> Pixels:
        values = photo.astype(np.float32)
        darker = (gaussian(values, self.sigma) - gaussian(values, 0.5)).min(axis=2)
        return np.where(darker > self.threshold, 255, 0).astype(np.uint8)

    def _edges(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        smooth = np.rint(gaussian(photo.astype(np.float32), self.sigma / 2)).astype(np.uint8)
        edges = cv2.Canny(smooth, 40, 90, L2gradient=True)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
        long = stats[:, cv2.CC_STAT_AREA] >= 6 * self.sigma
        long[0] = False
        kept = np.where(long[labels], 255, 0).astype(np.uint8) if count > 1 else edges
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.thickness, self.thickness))
        return cv2.dilate(kept, brush)
