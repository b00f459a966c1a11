"""Depth by ZoeDepth as transformers has it: in metres before it is made a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.depth_networks import DepthNetwork, depth_kind
from controlkit.preprocessors.distance import near_white
from controlkit.preprocessors.pretrained import Loaded


@dataclass(frozen=True)
class ZoeDepth(DepthNetwork):
    """Depth of rooms and streets, for ``depth`` models, those trained on ZoeDepth's maps above all.

    Linear in distance, where ``dpt`` is linear in its inverse: what is far keeps more of the range. By the
    rule of ``zoe``: of the distances in metres the nearest 2 % are white, the farthest 15 % black, and a
    plane without any depth is black. The network for rooms and streets chooses between its two halves for
    each photograph, one after the other: of a batch it would choose one for all.

    Source:
        Bhat et al. (2023), "ZoeDepth: zero-shot transfer by combining relative and metric depth",
        arXiv:2302.12288; transformers ``ZoeDepthForDepthEstimation``.
    """

    name = "zoedepth"
    meaning = "relative distance, near white, far black"
    kind = depth_kind("zoedepth")

    weights: str = option("Intel/zoedepth-nyu-kitti", meaning="a hub id or a folder of transformers' layout")
    gamma: bool = option(False, meaning="darken the middle, by the power 2.2")

    def answer(self, network: Loaded, photos: list[Pixels]) -> list[Any]:
        return [super(ZoeDepth, self).answer(network, [photo])[0] for photo in photos]

    def post_processing(self, sizes: list[Any]) -> dict[str, Any]:
        return {"source_sizes": sizes}

    def shown(self, network: Loaded, answer: Any) -> Pixels:
        return near_white(answer, self.gamma)
