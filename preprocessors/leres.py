"""Depth by LeReS: with more detail than MiDaS, and the near or the far cut off on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled, in_float32

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Leres(Auxiliary):
    """Relative depth by a ResNeXt-101, for ``depth`` models: rooms and streets with fine structures.

    The nearest point is white and the farthest black. Without the boosting by a second network that the web
    UIs call ``leres++``.

    Source:
        Yin et al. (2021), "Learning to recover 3D scene shape from a single image", CVPR; controlnet-aux
        ``LeresDetector``, where the options are called ``thr_a`` and ``thr_b``.
    """

    name = "leres"
    family = "depth"
    meaning = "relative depth, near white, far black"
    files = ("res101.pth",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")
    remove_near: float = option(
        0.0, low=0, high=100, unit="% of the range", meaning="what is nearer than this is made white"
    )
    remove_background: float = option(
        0.0, low=0, high=100, unit="% of the range", meaning="what is darker than this is made black"
    )

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        module = auxiliary("leres.leres.multi_depth_model_woauxi")
        network = filled(module.RelDepthModel(backbone="resnext101"), paths[0], self.name)
        in_float32(network.depth_model)
        return auxiliary("leres").LeresDetector(network, None)

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        return detector(
            photo,
            thr_a=self.remove_near,
            thr_b=self.remove_background,
            detect_resolution=side,
            image_resolution=side,
            output_type="np",
        )
