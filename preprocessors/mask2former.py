"""Segmentation by Mask2Former."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.extras import needed
from controlkit.preprocessors.base import option
from controlkit.preprocessors.pretrained import REQUIREMENT, Kind
from controlkit.preprocessors.semantic import Semantic

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Mask2Former(Semantic):
    """The kind of each pixel, for ``seg`` models: clean edges, of ADE20K or of COCO's panoptic labels.

    Networks of both are published in four sizes; give one whose name ends with ``ade-semantic`` or
    ``coco-panoptic``. A network of COCO's 80 things alone, or of Cityscapes, has no palette.

    Source:
        Cheng et al. (2022), "Masked-attention mask transformer for universal image segmentation", CVPR;
        transformers ``Mask2FormerForUniversalSegmentation``, which builds its loss with SciPy.
    """

    name = "mask2former"
    extra = f"{REQUIREMENT} scipy"
    kind = Kind(
        "Mask2FormerForUniversalSegmentation",
        ("mask2former",),
        ("class_queries_logits", "masks_queries_logits"),
    )

    weights: str = option(
        "facebook/mask2former-swin-tiny-ade-semantic", meaning="a hub id or a folder of transformers' layout"
    )

    def read(self, device: torch.device) -> Any:
        needed("scipy", "this detector needs SciPy", self.extra)
        return super().read(device)
