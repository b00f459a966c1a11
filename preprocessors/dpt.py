"""Depth by DPT, which is MiDaS 3."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.preprocessors.base import option
from controlkit.preprocessors.depth_networks import InverseDepth, depth_kind


@dataclass(frozen=True)
class Dpt(InverseDepth):
    """Relative depth by a vision transformer, for ``depth`` models: near to what many were trained on.

    The nearest point is white and the farthest black, whatever their distances; a plane without any depth is
    black. Softer than ``depth-anything``, with its errors on thin things and on glass. ``Intel/dpt-large``
    (MiDaS 3) and ``Intel/dpt-hybrid-midas``, whose maps the first depth models learned from, are published.

    Source:
        Ranftl, Bochkovskiy, Koltun (2021), "Vision transformers for dense prediction", ICCV; transformers
        ``DPTForDepthEstimation``.
    """

    name = "dpt"
    kind = depth_kind("dpt")

    weights: str = option("Intel/dpt-large", meaning="a hub id or a folder of transformers' layout")
