"""Surface normals by a network that knows where it is unsure."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import option
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class NormalBae(Auxiliary):
    """Which way surfaces face, for ``normalbae`` models, in the colours of the ControlNet 1.1 that it is for.

    Right for rooms and objects, weak for skies and hair. For models trained on normals from depth (ControlNet
    1.0) take ``normal``.

    Source:
        Bae, Budvytis, Cipolla (2021), "Estimating and exploiting the aleatoric uncertainty in surface normal
        estimation", ICCV; controlnet-aux ``NormalBaeDetector``.
    """

    name = "normal-bae"
    family = "normal"
    meaning = "surface normals: red is to the left, green up, blue towards the camera"
    files = ("scannet.pt",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        settings = SimpleNamespace(
            mode="client", architecture="BN", pretrained="scannet", sampling_ratio=0.4, importance_ratio=0.7
        )
        network = auxiliary("normalbae.nets.NNET").NNET(settings)
        return auxiliary("normalbae").NormalBaeDetector(filled(network, paths[0], self.name))
