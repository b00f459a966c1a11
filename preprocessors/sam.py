"""Regions of everything by Segment Anything, each in a colour of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.preprocessors.auxiliary import Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled, in_float32

if TYPE_CHECKING:
    from pathlib import Path

_PUBLISHED = {
    "vit_b": ("ybelkada/segment-anything", "checkpoints/sam_vit_b_01ec64.pth"),
    "vit_l": ("ybelkada/segment-anything", "checkpoints/sam_vit_l_0b3195.pth"),
    "vit_h": ("ybelkada/segment-anything", "checkpoints/sam_vit_h_4b8939.pth"),
    "vit_t": ("dhkim2810/MobileSAM", "mobile_sam.pt"),
}


@dataclass(frozen=True)
class Sam(Auxiliary):
    """Every thing and part in a random colour, for models that were trained on such maps.

    The colours mean nothing: models of ADE20K or COCO labels read them wrongly. Small regions lie above
    large ones, and what belongs to no region is black. A network of any size looks at 1024 pixels; ``vit_t``
    is MobileSAM's.

    Source:
        Kirillov et al. (2023), "Segment anything", ICCV; Zhang et al. (2023), "Faster segment anything",
        arXiv:2306.14289; controlnet-aux ``SamDetector``, which draws the colours from numpy's global state.
    """

    name = "sam"
    family = "regions"
    meaning = "regions in colours without meaning, black where there is none"
    marks = True
    files = tuple(file for _, file in _PUBLISHED.values())

    weights: str = option(
        "",
        meaning="where its weights are: a hub id, a folder, or a file; empty: where the model was published",
    )
    model: str = option("vit_b", choices=tuple(_PUBLISHED), meaning="the network's size")
    points: int = option(
        32, low=1, high=128, unit="points", meaning="places along each side where a region is looked for"
    )
    quality: float = option(
        0.88, low=0, high=1, meaning="how good the network must think a region to be, as overlap"
    )
    stability: float = option(
        0.95, low=0, high=1, meaning="how little a region may change with the threshold, as overlap"
    )
    seed: int = option(0, low=0, high=2**32 - 1, meaning="of the colours")

    def wanted(self) -> tuple[str, ...]:
        return (_PUBLISHED[self.model][1],)

    def source(self) -> str:
        return self.weights or _PUBLISHED[self.model][0]

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        network = auxiliary("segment_anything.build_sam").sam_model_registry[self.model](checkpoint=None)
        for part in (network.image_encoder, network.prompt_encoder, network.mask_decoder):
            in_float32(part)
        return filled(network, paths[0], self.name)

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        generator = auxiliary("segment_anything.automatic_mask_generator").SamAutomaticMaskGenerator(
            detector,
            points_per_side=self.points,
            pred_iou_thresh=self.quality,
            stability_score_thresh=self.stability,
        )
        found = generator.generate(photo)
        colours = np.random.RandomState(self.seed)
        drawn = np.zeros(photo.shape, np.uint8)
        for region in sorted(found, key=lambda each: each["area"], reverse=True):
            drawn[region["segmentation"]] = [colours.randint(255, dtype=np.uint8) for _ in range(3)]
        return drawn
