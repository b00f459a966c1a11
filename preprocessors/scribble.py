"""Scribbles: a few bold strokes, as a hand would draw the picture's outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, gaussian, gradient, luma, opencv, without_specks


@dataclass(frozen=True)
class Scribble(Detector):
    """Bold white strokes on black, fully on or off, for ``scribble`` ControlNets.

    ``xdog`` inks what is darker than its surroundings, as a brush drawing does; ``edges`` follows the
    outlines of the larger shapes with a pen of one width. Specks are left out.

    Source:
        ``xdog``: Winnemöller, Kyprianidis, Olsen (2012), "XDoG: an extended difference-of-Gaussians
        compendium", Computers & Graphics 36(6), with a hard threshold. ``edges``: OpenCV ``Canny`` on the
        blurred picture, widened by ``dilate``. Both: OpenCV ``connectedComponentsWithStats``.
    """

    name = "scribble"
    family = "scribble"
    meaning = "bold strokes, white on black"
    extra = REQUIREMENT
    marks = True

    method: str = option("xdog", choices=("xdog", "edges"), meaning="ink dark lines, or follow outlines")
    threshold: float = option(
        9.0, low=1, high=127, unit="levels of 255", meaning="xdog: how much darker than around is ink"
    )
    sigma: float = option(
        5.0,
        low=1,
        high=40,
        unit="pixels",
        meaning="size of the surroundings (xdog), or twice the blur that removes detail (edges)",
    )
    thickness: int = option(4, low=1, high=32, unit="pixels", meaning="edges: width of the strokes")

    def detect(self, photo: Pixels) -> Pixels:
        return self._xdog(photo) if self.method == "xdog" else self._edges(photo)

    def _xdog(self, photo: Pixels) -> Pixels:
        values = luma(photo).astype(np.float32)
        darker = gaussian(values, self.sigma) - gaussian(values, 0.16 * self.sigma)
        ink = np.where(darker > self.threshold, 255, 0).astype(np.uint8)
        return without_specks(ink, 3 * self.sigma**2)

    def _edges(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        smooth = np.rint(gaussian(photo.astype(np.float32), self.sigma / 2)).clip(0, 255).astype(np.uint8)
        high = float(np.clip(np.percentile(gradient(smooth, l2=True), 86), 30, 90))
        edges = without_specks(cv2.Canny(smooth, 0.4 * high, high, L2gradient=True), 6 * self.sigma)
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.thickness, self.thickness))
        return cv2.dilate(edges, brush)
