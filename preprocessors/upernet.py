"""Segmentation by UPerNet."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.preprocessors.base import option
from controlkit.preprocessors.pretrained import Kind
from controlkit.preprocessors.semantic import Semantic


@dataclass(frozen=True)
class UperNet(Semantic):
    """The kind of each pixel, for ``seg`` models: the network of diffusers' example of them.

    With a ConvNeXt or Swin backbone, of ADE20K. Steadier on large surfaces than ``segformer``, softer at
    edges than ``oneformer``.

    Source:
        Xiao et al. (2018), "Unified perceptual parsing for scene understanding", ECCV; transformers
        ``UperNetForSemanticSegmentation``.
    """

    name = "upernet"
    kind = Kind("UperNetForSemanticSegmentation", ("upernet",), ("logits",))

    weights: str = option(
        "openmmlab/upernet-convnext-small", meaning="a hub id or a folder of transformers' layout"
    )
