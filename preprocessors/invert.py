"""Invert: a drawing in black on white becomes white on black."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.preprocessors.base import Detector, Pixels


@dataclass(frozen=True)
class Invert(Detector):
    """255 minus every value: for drawings on white paper, which ControlNets want white on black.

    Needs nothing but Pillow and numpy.
    """

    name = "invert"
    family = "lineart"
    meaning = "the negative of the picture: dark ink white, white paper black"
    marks = True

    def detect(self, photo: Pixels) -> Pixels:
        return 255 - photo
