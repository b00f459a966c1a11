"""Regions of everything by SAM 2, each in a colour of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.pretrained import Kind, Loaded, Pretrained, needed_transformers


@dataclass(frozen=True)
class Sam2(Pretrained):
    """Every thing and part in a random colour, for models that were trained on such maps.

    The colours mean nothing: models of ADE20K or COCO labels read them wrongly. Colours are drawn for the
    largest region first; small regions lie above large ones, and what belongs to no region is black. Sharper
    and quicker than ``sam``. Photographs are looked at one after the other, the points of each in batches.

    Source:
        Ravi et al. (2024), "SAM 2: segment anything in images and videos", arXiv:2408.00714; transformers
        ``Sam2Model`` and its pipeline ``mask-generation``.
    """

    name = "sam2"
    family = "regions"
    meaning = "regions in colours without meaning, black where there is none"
    marks = True
    kind = Kind("AutoModelForMaskGeneration", ("sam2", "sam2_video"), ("pred_masks", "iou_scores"))

    weights: str = option(
        "facebook/sam2.1-hiera-tiny", meaning="a hub id or a folder of transformers' layout"
    )
    points: int = option(
        32, low=1, high=128, unit="points", meaning="places along each side where a region is looked for"
    )
    quality: float = option(
        0.88, low=0, high=1, meaning="how good the network must think a region to be, as overlap"
    )
    stability: float = option(
        0.95, low=0, high=1, meaning="how little a region may change with the threshold, as overlap"
    )
    alike: float = option(
        0.7, low=0, high=1, meaning="boxes that overlap more, as a share of both, are of one region"
    )
    seed: int = option(0, low=0, high=2**32 - 1, meaning="of the colours")

    def answer(self, network: Loaded, photos: list[Pixels]) -> list[Any]:
        import torch
        from PIL import Image

        generator = needed_transformers().MaskGenerationPipeline(
            model=network.model, image_processor=network.processor, device=network.model.device
        )
        with torch.random.fork_rng(devices=[]):  # it draws a number for each picture, and uses none
            return [self._regions(generator, Image.fromarray(photo)) for photo in photos]

    def shown(self, network: Loaded, answer: Any) -> Pixels:
        colours = np.random.RandomState(self.seed).randint(1, 256, (int(answer.max()), 3), np.uint8)
        return np.concatenate([np.zeros((1, 3), np.uint8), colours])[answer]

    def _regions(self, generator: Any, photo: Any) -> Any:
        """(H, W): 0 where there is no region, otherwise the region's rank by size, from 1."""
        found = generator(
            photo,
            points_per_crop=self.points,
            pred_iou_thresh=self.quality,
            stability_score_thresh=self.stability,
            crops_nms_thresh=self.alike,
        )
        masks = [np.asarray(mask, bool) for mask in found["masks"]]
        ranks = np.zeros((photo.height, photo.width), np.int64)
        for rank, mask in enumerate(sorted(masks, key=lambda each: -int(each.sum())), 1):
            ranks[mask] = rank
        return ranks
