"""Soft edges by PiDiNet: pixel differences inside of a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class PidiNet(Auxiliary):
    """Outlines thinner and calmer than HED's, for ``softedge``, ``scribble`` and T2I-Adapter's ``sketch``.

    A small network: the choice where there is no GPU. It misses soft transitions, such as of smoke and hair,
    that HED still shows. ``sharp`` leaves black and white alone, as T2I-Adapter's ``sketch`` wants it.

    Source:
        Su et al. (2021), "Pixel difference networks for efficient edge detection", ICCV; controlnet-aux
        ``PidiNetDetector``, where ``sharp`` is called ``apply_filter``.
    """

    name = "pidinet"
    family = "softedge"
    meaning = "outlines as bright as they are sure, white on black"
    marks = True
    files = ("table5_pidinet.pth",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")
    safe: bool = option(False, meaning="only three levels of gray")
    scribble: bool = option(False, meaning="bold strokes in place of soft edges")
    sharp: bool = option(False, meaning="black and white, cut at half of full certainty")

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        module = auxiliary("pidi")
        return module.PidiNetDetector(filled(module.pidinet(), paths[0], self.name))

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        return detector(
            photo,
            detect_resolution=side,
            image_resolution=side,
            output_type="np",
            safe=self.safe,
            scribble=self.scribble,
            apply_filter=self.sharp,
        )
