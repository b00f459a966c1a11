"""True poses on the photograph, as networks of poses answer: heatmaps, fields of limbs, coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from controlkit.preprocessors import wholebody
from controlkit.preprocessors.skeleton import FROM_COCO
from format_pictures.person import BODY, FACE, SIDE, Place

SPREAD = 1.0
"""Of a joint on a heatmap, in its cells."""
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
)  # fmt: skip
"""OpenPose's limbs, as its grouping of joints goes through them."""
CHANNELS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
"""The first of the two channels of each limb's field; the second follows."""


def openpose_points() -> list[Place | None]:
    """OpenPose's 18 points in pixels, the neck between the shoulders."""
    points = [None if place is None else BODY.get(place) for place in FROM_COCO]
    points[1] = ((BODY[5][0] + BODY[6][0]) / 2, (BODY[5][1] + BODY[6][1]) / 2)
    return points


def heatmaps(points: Sequence[Place | None], height: int, width: int, spread: float) -> torch.Tensor:
    """(points, height, width): a hill of height 1 on each point, which is given in cells."""
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [
        torch.zeros(height, width)
        if point is None
        else torch.exp(-((across - point[0]) ** 2 + (down - point[1]) ** 2) / (2 * spread**2))
        for point in points
    ]
    return torch.stack(planes)


def fields(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What OpenPose's network of bodies answers.

    Returns:
        (1, 38, height, width): along each limb its direction; (1, 19, height, width): heatmaps of the joints
        and of what is none.
    """
    scale = np.array([width, height]) / SIDE
    cells = [None if point is None else (np.array(point) + 0.5) * scale - 0.5 for point in openpose_points()]
    joints = heatmaps([None if one is None else (one[0], one[1]) for one in cells], height, width, SPREAD)
    none = 1 - joints.max(0, keepdim=True).values
    limbs = torch.zeros(38, height, width)
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for (start, end), channel in zip(LIMBS, CHANNELS, strict=True):
        one, other = cells[start], cells[end]
        if one is None or other is None:
            continue
        length = float(np.linalg.norm(other - one))
        way = (other - one) / length
        along = (across - one[0]) * way[0] + (down - one[1]) * way[1]
        beside = ((across - one[0]) * way[1] - (down - one[1]) * way[0]).abs()
        near = (along >= -1) & (along <= length + 1) & (beside <= 1)
        limbs[channel][near], limbs[channel + 1][near] = float(way[0]), float(way[1])
    return limbs[None], torch.cat([joints, none])[None]


def whole_body() -> list[Place | None]:
    """COCO-WholeBody's 133 points in pixels: body, feet, face, hands."""
    body = [BODY.get(number) for number in range(17)]
    return [*body, *([None] * 6), *FACE, *([None] * 42)]


class Session:
    """A session of onnxruntime that answers with a function."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def get_inputs(self) -> list[Any]:
        """Its one input."""
        return [SimpleNamespace(name="input")]

    def run(self, _: Any, given: dict[str, Any]) -> list[Any]:
        """What the function says of it."""
        return self._answer(given["input"])


def persons() -> Session:
    """YOLOX: one person, all of the picture, found by the middle cell of the coarsest grid."""
    stride = wholebody.STRIDES[-1]
    count = wholebody.SIDE // stride
    row = wholebody.CELLS - count * count + count * (count // 2) + count // 2
    rows = np.zeros((1, wholebody.CELLS, 85), np.float32)
    rows[0, row, 2:4] = np.log(count)  # the box's middle is its cell's corner
    rows[0, row, 4:6] = 1
    return Session(lambda _: [rows])


def coordinates() -> Session:
    """RTMPose: for each point a hill over the half pixels of the width, and of the height."""

    def answer(_: Any) -> list[Any]:
        _, middle, size = wholebody.crop(np.zeros((SIDE, SIDE, 3), np.uint8), np.array([0, 0, SIDE, SIDE]))
        found = []
        for axis, side in enumerate(wholebody.CROP):
            bins = np.zeros((1, wholebody.POINTS, side * wholebody.SPLIT), np.float32)
            for number, point in enumerate(whole_body()):
                if point is not None:
                    there = (point[axis] - middle[axis] + size[axis] / 2) / size[axis] * bins.shape[2]
                    bins[0, number] = np.exp(-((np.arange(bins.shape[2]) - there) ** 2) / 32)
            found.append(bins)
        return found

    return Session(answer)
