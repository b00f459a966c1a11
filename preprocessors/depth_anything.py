"""Depth by Depth Anything V2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlkit.errors import KindMismatch
from controlkit.preprocessors.base import option
from controlkit.preprocessors.depth_networks import InverseDepth, depth_kind


@dataclass(frozen=True)
class DepthAnything(InverseDepth):
    """Relative depth by a vision transformer, for ``depth`` models: today's best choice for photographs.

    The nearest point is white and the farthest black, whatever their distances; a plane without any depth is
    black. Fine structures and thin things are kept. Small, base and large networks and their metric kinds are
    published; only those of relative depth fit here. V1's folders are read too.

    Source:
        Yang et al. (2024), "Depth Anything V2", NeurIPS; transformers ``DepthAnythingForDepthEstimation``.
    """

    name = "depth-anything"
    kind = depth_kind("depth_anything")

    weights: str = option(
        "depth-anything/Depth-Anything-V2-Small-hf", meaning="a hub id or a folder of transformers' layout"
    )

    def check(self, model: Any) -> None:
        if model.config.depth_estimation_type != "relative":
            raise KindMismatch(
                f"{self.name}: {self.weights}",
                found=f"a network of {model.config.depth_estimation_type} depth, where far is large",
                expected="one of relative depth",
                fix="Give depth-anything/Depth-Anything-V2-Small-hf, or another without Metric in its name.",
            )
