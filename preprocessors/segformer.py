"""Segmentation by SegFormer."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.preprocessors.base import option
from controlkit.preprocessors.pretrained import Kind
from controlkit.preprocessors.semantic import Semantic


@dataclass(frozen=True)
class SegFormer(Semantic):
    """The kind of each pixel, for ``seg`` models: small and quick, edges four pixels coarse.

    Networks b0 (the default, 15 MB) to b5 of ADE20K are published; those of Cityscapes have labels that no
    published control knows. Good for streets and rooms; small things are lost.

    Source:
        Xie et al. (2021), "SegFormer", NeurIPS; transformers ``SegformerForSemanticSegmentation``.
    """

    name = "segformer"
    kind = Kind("SegformerForSemanticSegmentation", ("segformer",), ("logits",))

    weights: str = option(
        "nvidia/segformer-b0-finetuned-ade-512-512", meaning="a hub id or a folder of transformers' layout"
    )
