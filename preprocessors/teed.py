"""Edges by TEED: sharp lines from a tiny network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Teed(Auxiliary):
    """Fine outlines from a network of 58,000 weights, for ``softedge`` and ``lineart`` models.

    The quickest of the learned edges. It keeps small details and with them some texture, which ``safe_steps``
    rounds away.

    Source:
        Soria et al. (2023), "Tiny and efficient model for the edge detection generalization", ICCV
        workshops; controlnet-aux ``TEEDdetector``, whose manual names the repository.
    """

    name = "teed"
    family = "softedge"
    meaning = "outlines as bright as they are sure, white on black"
    marks = True
    files = ("5_model.pth",)

    weights: str = option("fal-ai/teed", meaning="where its weights are: a hub id, a folder, or a file")
    safe_steps: int = option(
        2, low=0, high=10, unit="steps", meaning="levels of gray above black; 0: as the network answers"
    )

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        module = auxiliary("teed")
        return module.TEEDdetector(filled(module.TED(), paths[0], self.name))

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        return detector(photo, detect_resolution=side, safe_steps=self.safe_steps, output_type="np")
