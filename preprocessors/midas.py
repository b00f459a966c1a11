"""Depth by MiDaS, as the first ControlNets were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Midas(Auxiliary):
    """Relative depth by DPT-Hybrid, for ``depth`` models: what most of them were trained on.

    The nearest point is white and the farthest black. Fine structures are lost, which leaves a model freedom;
    ``depth-anything`` shows them. One map is not to scale with another.

    Source:
        Ranftl, Bochkovskiy, Koltun (2021), "Vision transformers for dense prediction", ICCV; controlnet-aux
        ``MidasDetector`` with its ``dpt_hybrid``.
    """

    name = "midas"
    family = "depth"
    meaning = "relative inverse depth, near white, far black"
    files = ("dpt_hybrid-midas-501f0c75.pt",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        network = auxiliary("midas.midas.dpt_depth").DPTDepthModel(
            path=None, backbone="vitb_rn50_384", non_negative=True
        )
        return filled(network, paths[0], self.name)

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        import torch

        device = next(detector.parameters()).device
        pixels = torch.from_numpy(photo.copy()).float().to(device) / 127.5 - 1
        plane = detector(pixels.permute(2, 0, 1)[None].contiguous())[0].float().cpu().numpy()
        plane = plane - plane.min()
        highest = plane.max()
        if highest == 0:
            return np.zeros(plane.shape, np.uint8)
        return (plane / highest * 255).clip(0, 255).astype(np.uint8)
