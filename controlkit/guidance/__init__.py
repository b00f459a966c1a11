"""Guidance: controls that are a function's gradient, with no weights inside the U-Net.

It is part of the core because modules of several kinds (noisy classifiers, noisy CLIP) give such controls.
`Guidance` takes any function; the makers beside it (`classifier`, `text`, `image`, `segmentation`, `edges`,
`depth`, `color`, `region`, and `total` for sums) return ready-made ones, whose target is Guidance's ``y``:
``ck.Guidance(ck.guidance.edges(), edge_map, scale=2)``.
"""

from __future__ import annotations

from controlkit.guidance.classes import classifier
from controlkit.guidance.colours import color
from controlkit.guidance.control import Guidance
from controlkit.guidance.depths import depth
from controlkit.guidance.labels import segmentation
from controlkit.guidance.likelihood import Likelihood
from controlkit.guidance.likeness import image, text
from controlkit.guidance.pixels import edges, region
from controlkit.guidance.sums import total

__all__ = [
    "Guidance",
    "Likelihood",
    "classifier",
    "color",
    "depth",
    "edges",
    "image",
    "region",
    "segmentation",
    "text",
    "total",
]
