"""Straight lines by M-LSD: walls, windows and furniture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.opencv import opencv
from controlkit.preprocessors.statefiles import filled, in_float32

if TYPE_CHECKING:
    from pathlib import Path

_FAR = 2**30
"""Pixels. What OpenCV can draw a line to."""


@dataclass(frozen=True)
class Mlsd(Auxiliary):
    """The long straight lines of buildings and rooms, one pixel wide, for ``mlsd`` models.

    Curves and living things leave it empty. At most 200 lines; ``lines`` finds more, shorter ones and needs
    no weights.

    Source:
        Gu et al. (2022), "Towards light-weight and real-time line segment detection", AAAI; controlnet-aux
        ``MLSDdetector``, where the options are called ``thr_v`` and ``thr_d``.
    """

    name = "mlsd"
    family = "mlsd"
    meaning = "straight segments, white on black"
    marks = True
    files = ("mlsd_large_512_fp32.pth",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")
    score: float = option(0.1, low=0, high=1, meaning="how sure the network must be of a line")
    length: float = option(
        0.1, low=0, high=2048, unit="pixels of half size", meaning="lines up to this long are dropped"
    )

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        network = auxiliary("mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large()
        return in_float32(filled(network, paths[0], self.name))

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        cv2 = opencv()
        drawn = np.zeros(photo.shape[:2], np.uint8)
        try:
            found = auxiliary("mlsd.utils").pred_lines(
                photo, detector, list(photo.shape[:2]), self.score, self.length
            )
        except IndexError:  # it takes columns of its list of lines even where that is empty
            return drawn
        for left, top, right, bottom in found.clip(-_FAR, _FAR).astype(int).tolist():
            cv2.line(drawn, (left, top), (right, bottom), 255, 1)
        return drawn
