"""Segmentation by OneFormer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.extras import needed
from controlkit.preprocessors.base import option
from controlkit.preprocessors.pretrained import REQUIREMENT, Kind, needed_transformers
from controlkit.preprocessors.semantic import Semantic

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OneFormer(Semantic):
    """The kind of each pixel, for ``seg`` models: ControlNet 1.1's maps were made with it.

    Of ADE20K or COCO's panoptic labels; the one of Cityscapes has no palette. The network is told its task,
    "semantic". The default is large (880 MB): slow on a CPU, where ``segformer`` is quick.

    Source:
        Jain et al. (2023), "OneFormer: one transformer to rule universal image segmentation", CVPR;
        transformers ``OneFormerForUniversalSegmentation``, which builds its loss with SciPy.
    """

    name = "oneformer"
    extra = f"{REQUIREMENT} scipy"
    kind = Kind(
        "OneFormerForUniversalSegmentation", ("oneformer",), ("class_queries_logits", "masks_queries_logits")
    )

    weights: str = option(
        "shi-labs/oneformer_ade20k_swin_large", meaning="a hub id or a folder of transformers' layout"
    )

    def read(self, device: torch.device) -> Any:
        needed("scipy", "this detector needs SciPy", self.extra)
        return super().read(device)

    def processor(self, where: str, config: Any, options: dict[str, Any]) -> Any:
        """Its parts, without the table of classes, which is fetched from elsewhere and not needed."""
        transformers = needed_transformers()
        pictures = transformers.AutoImageProcessor.from_pretrained(where, class_info_file=None, **options)
        words = transformers.AutoTokenizer.from_pretrained(where, **options)
        return transformers.OneFormerProcessor(pictures, words, task_seq_length=config.task_seq_len)

    def asked(self, count: int) -> dict[str, Any]:
        return {"task_inputs": ["semantic"] * count}
