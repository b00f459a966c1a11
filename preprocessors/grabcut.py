"""GrabCut: the thing inside a box or under a scribble, cut out as a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controlkit.errors import ParameterError
from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.opencv import REQUIREMENT, opencv
from controlkit.preprocessors.regions import Region, box_pixels


@dataclass(frozen=True)
class GrabCut(Detector):
    """The foreground as a mask, white on black, to cut out, to inpaint, or as the region of a control.

    Everything outside ``box`` is background; with ``scribble``, white strokes are surely foreground, black
    ones surely background, and gray is to be found. Where one colour fits both, it takes a scribble.

    Source:
        Rother, Kolmogorov, Blake (2004), "GrabCut: interactive foreground extraction using iterated graph
        cuts", ACM TOG 23(3): OpenCV ``grabCut``, with a fixed seed.
    """

    name = "grabcut"
    family = "mask"
    meaning = "the foreground, white on black"
    extra = REQUIREMENT
    marks = True

    box: str = option(
        "0.05,0.05,0.95,0.95", meaning="left, top, right, bottom as fractions; outside is background"
    )
    scribble: Region | None = option(  # noqa: RUF009
        None, meaning="instead of the box, a picture: white is foreground, black background, gray to be found"
    )
    rounds: int = option(5, low=1, high=50, unit="rounds", meaning="of fitting colours and cutting")

    def __post_init__(self) -> None:
        super().__post_init__()
        box_pixels(self.box, 1, 1, "grabcut: box")
        if self.scribble is None:
            return
        strokes = self.scribble.pixels
        if not (strokes > 191).any() or not (strokes < 64).any():
            raise ParameterError(
                "grabcut: scribble",
                found="no white stroke" if not (strokes > 191).any() else "no black stroke",
                expected="both: white on what to keep, black on what to leave, gray (128) elsewhere",
                fix="Draw on a gray picture, or pass box= instead.",
            )

    def detect(self, photo: Pixels) -> Pixels:
        cv2 = opencv()
        height, width = photo.shape[:2]
        if self.scribble is None:
            state = np.full((height, width), cv2.GC_BGD, np.uint8)
            left, top, right, bottom = box_pixels(self.box, height, width, "grabcut: box")
            state[top:bottom, left:right] = cv2.GC_PR_FGD
        else:
            strokes = self.scribble.at(height, width, "grabcut: scribble")
            state = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
            state[strokes > 191], state[strokes < 64] = cv2.GC_FGD, cv2.GC_BGD
        inside = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
        if inside.all() or not inside.any():
            return np.zeros((height, width), np.uint8)
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(photo, state, None, *models, self.rounds, cv2.GC_INIT_WITH_MASK)
        kept = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
        return np.where(kept, 255, 0).astype(np.uint8)
