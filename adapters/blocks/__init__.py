"""Layers that several adapters are built from, under the parameter names of diffusers' U-Net."""

from __future__ import annotations

from controlkit.adapters.blocks.embeddings import TimeMlp, sinusoids
from controlkit.adapters.blocks.encoder import DownBlock, MidBlock, ResnetBlock
from controlkit.adapters.blocks.transformer import Attention, SpatialTransformer, TransformerLayer

__all__ = [
    "Attention",
    "DownBlock",
    "MidBlock",
    "ResnetBlock",
    "SpatialTransformer",
    "TimeMlp",
    "TransformerLayer",
    "sinusoids",
]
