"""Distances in metres as a map: near white, by the rule of ZoeDepth's maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from controlkit.preprocessors.base import Pixels


def near_white(distance: Any, gamma: bool) -> Pixels:
    """(H, W) distances as a map: the nearest 2 % white, the farthest 15 % black; black where all are equal.

    Args:
        distance: In metres, or any unit.
        gamma: Darken the middle, by the power 2.2.
    """
    low, high = np.percentile(distance, 2), np.percentile(distance, 85)
    if high == low:
        low, high = distance.min(), distance.max()
    if high == low:
        return np.zeros(distance.shape, np.uint8)
    nearness = 1 - (distance - low) / (high - low)
    if gamma:
        nearness = nearness.clip(min=0) ** 2.2
    return (nearness * 255).clip(0, 255).astype(np.uint8)
