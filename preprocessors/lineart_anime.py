"""Line art in the manner of cartoons, drawn by a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import option
from controlkit.preprocessors.statefiles import filled, in_float32

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class LineartAnime(Auxiliary):
    """The ink lines of a cartoon or of a painted picture, for ``lineart_anime`` models.

    On photographs its lines are few and broken; take ``lineart-realistic`` there. The network reads multiples
    of 256 pixels, to which the picture is stretched and the drawing brought back, as in controlnet-aux.

    Source:
        Zhang, "Anime2Sketch" (2021), after Xiang et al., "Adversarial open domain adaptation for
        sketch-to-photo synthesis", WACV 2022; controlnet-aux ``LineartAnimeDetector``.
    """

    name = "lineart-anime"
    family = "lineart_anime"
    meaning = "ink lines, white on black"
    marks = True
    files = ("netG.pth",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        from torch.nn import InstanceNorm2d

        module = auxiliary("lineart_anime")
        norm = partial(InstanceNorm2d, affine=False, track_running_stats=False)
        network = module.UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)
        return module.LineartAnimeDetector(in_float32(filled(network, paths[0], self.name)))
