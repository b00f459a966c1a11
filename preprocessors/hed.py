"""Soft edges by HED: how much of an outline each pixel is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Hed(Auxiliary):
    """Soft outlines of things rather than of textures, for ``softedge`` (HED) and ``scribble`` models.

    ``safe`` leaves three levels of gray, in which nothing of the photograph can hide; ``scribble`` thins the
    outlines to bold strokes.

    Source:
        Xie, Tu (2015), "Holistically-nested edge detection", ICCV; the network retrained for ControlNet 1.1;
        controlnet-aux ``HEDdetector``.
    """

    name = "hed"
    family = "softedge"
    meaning = "outlines as bright as they are sure, white on black"
    marks = True
    files = ("ControlNetHED.pth",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")
    safe: bool = option(False, meaning="only three levels of gray")
    scribble: bool = option(False, meaning="bold strokes in place of soft edges")

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        module = auxiliary("hed")
        return module.HEDdetector(filled(module.ControlNetHED_Apache2(), paths[0], self.name))

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        return detector(
            photo,
            detect_resolution=side,
            image_resolution=side,
            output_type="np",
            safe=self.safe,
            scribble=self.scribble,
        )
