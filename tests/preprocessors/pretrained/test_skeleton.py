"""Skeletons are drawn as controlnet-aux draws them, from COCO's joints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from controlkit.preprocessors.auxiliary import auxiliary
from controlkit.preprocessors.skeleton import FROM_COCO, draw, from_coco

Point = tuple[float, float] | None
COCO = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder",
    "left elbow", "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee",
    "right knee", "left ankle", "right ankle",
)  # fmt: skip
OPENPOSE = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow",
    "left wrist", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_pixels_are_those_of_controlnet_aux(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = [(97, 150), (512, 512), (1, 1), (300, 40)][seed % 4]
    points: list[Point] = [
        None if random.random() < 0.15 else tuple(random.uniform(-0.2, 1.2, 2).tolist()) for _ in range(18)
    ]
    keypoint = auxiliary("open_pose.body").Keypoint
    theirs: list[Any] = [None if point is None else keypoint(*point) for point in points]
    expected = auxiliary("open_pose.util").draw_bodypose(np.zeros((*size, 3), np.uint8), theirs)
    ours = np.zeros((*size, 3), np.uint8)
    draw(ours, points)
    assert np.array_equal(ours, expected)
    assert seed % 4 == 2 or ours.any()


def test_names_of_joints_agree() -> None:
    assert [None if place is None else COCO[place] for place in FROM_COCO] == [
        None if name == "neck" else name for name in OPENPOSE
    ]


@pytest.mark.parametrize("hidden", ["", "left shoulder", "right shoulder"])
def test_the_neck_is_between_the_shoulders(hidden: str) -> None:
    points: list[Point] = [(i / 20, i / 40) for i in range(17)]
    if hidden:
        points[COCO.index(hidden)] = None
    neck = from_coco(points)[OPENPOSE.index("neck")]
    assert neck == (None if hidden else pytest.approx((5.5 / 20, 5.5 / 40)))
