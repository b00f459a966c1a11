"""Depth by ZoeDepth: in metres before it is made a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.distance import near_white
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Zoe(Auxiliary):
    """Depth of rooms, for ``depth`` models, those trained on ZoeDepth (SDXL's ``depth-zoe``) above all.

    Linear in distance, where ``midas`` is linear in its inverse: what is far keeps more of the range. The
    nearest 2 % are white and the farthest 15 % black. The network looks at 512 x 384 pixels whatever the
    photograph's size.

    Source:
        Bhat et al. (2023), "ZoeDepth: zero-shot transfer by combining relative and metric depth",
        arXiv:2302.12288; controlnet-aux ``ZoeDetector`` with its ``zoedepth``.
    """

    name = "zoe"
    family = "depth"
    meaning = "relative distance, near white, far black"
    files = ("ZoeD_M12_N.pt",)

    weights: str = option(ANNOTATORS, meaning="where its weights are: a hub id, a folder, or a file")
    gamma: bool = option(False, meaning="darken the middle, by the power 2.2")

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        config = auxiliary("zoe.zoedepth.utils.config").get_config("zoedepth", "infer")
        network = auxiliary("zoe.zoedepth.models.zoedepth.zoedepth_v1").ZoeDepth.build_from_config(config)
        return filled(network, paths[0], self.name, left_out="relative_position_index")

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        import torch

        pixels = torch.from_numpy(photo.copy()).float().to(next(detector.parameters()).device) / 255
        plane = detector.infer(pixels.permute(2, 0, 1)[None].contiguous())[0, 0].float().cpu().numpy()
        return near_white(plane, self.gamma)
