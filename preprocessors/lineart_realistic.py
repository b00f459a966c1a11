"""Line art of photographs, drawn by a network that learned it from sketches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class LineartRealistic(Auxiliary):
    """A drawing of a photograph in pencil lines of varying strength, for ``lineart`` models.

    It draws what an artist would, and leaves textures out. For drawings that are there already take
    ``lineart`` or ``invert``; for cartoons ``lineart-anime``.

    Source:
        Chan, Durand, Isola (2022), "Learning to generate line drawings that convey geometry and semantics",
        CVPR; controlnet-aux ``LineartDetector``.
    """

    name = "lineart-realistic"
    family = "lineart"
    meaning = "pencil lines of varying strength, white on black"
    marks = True
    files = ("sk_model.pth", "sk_model2.pth")

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")
    coarse: bool = option(False, meaning="fewer and bolder lines, by the second network")

    def wanted(self) -> tuple[str, ...]:
        return self.files[self.coarse :][:1]

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        module = auxiliary("lineart")
        network = filled(module.Generator(3, 1, 3), paths[0], self.name)
        return module.LineartDetector(network, network)

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        return detector(
            photo, coarse=self.coarse, detect_resolution=side, image_resolution=side, output_type="np"
        )
