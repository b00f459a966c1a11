"""What networks of transformers that estimate depth have in common: their answer as a map, near bright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from controlkit.preprocessors.base import Pixels
from controlkit.preprocessors.pretrained import Kind, Loaded, Pretrained


def depth_kind(*types: str) -> Kind:
    """Networks of depth of these model types."""
    return Kind("AutoModelForDepthEstimation", types, ("predicted_depth",))


@dataclass(frozen=True)
class DepthNetwork(Pretrained):
    """A network whose answer is a plane, brought to the photograph's size by its own processor."""

    family = "depth"

    def answer(self, network: Loaded, photos: list[Pixels]) -> list[Any]:
        outputs = network.model(**self.inputs(photos, network))
        sizes = [photo.shape[:2] for photo in photos]
        found = network.processor.post_process_depth_estimation(
            outputs, target_sizes=sizes, **self.post_processing(sizes)
        )
        return [each["predicted_depth"].float().cpu().numpy() for each in found]

    def post_processing(self, sizes: list[Any]) -> dict[str, Any]:
        """What else the processor must be told, of photographs of these (height, width)."""
        return {}


@dataclass(frozen=True)
class InverseDepth(DepthNetwork):
    """A network of inverse depth up to scale and shift: stretched so that both ends are reached."""

    meaning = "relative inverse depth, near white, far black"

    def shown(self, network: Loaded, answer: Any) -> Pixels:
        low, high = answer.min(), answer.max()
        if high == low:
            return np.zeros(answer.shape, np.uint8)
        return ((answer - low) / (high - low) * 255).astype(np.uint8)
