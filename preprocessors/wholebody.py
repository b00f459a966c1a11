"""Persons by YOLOX and 133 points of each by RTMPose, as numbers before and after the networks.

Source:
    The ONNX branch of IDEA-Research/DWPose: ``onnxdet.py``, ``onnxpose.py``, ``wholebody.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlkit.preprocessors.base import Pixels
from controlkit.preprocessors.opencv import opencv

Floats = NDArray[np.floating]

SIDE = 640
"""Of the square that YOLOX sees, pixels."""
STRIDES = (8, 16, 32)
CELLS = sum((SIDE // stride) ** 2 for stride in STRIDES)
GREY = 114
CROP = (288, 384)
"""Width and height of the part that RTMPose sees, pixels."""
POINTS = 133
SPLIT = 2
"""Bins to a pixel."""
MARGIN = 1.25
MEAN = np.array([123.675, 116.28, 103.53])
DEVIATION = np.array([58.395, 57.12, 57.375])
NECK = 1
_BODY = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""OpenPose's 18 points among COCO's, the neck put after the body as number 17."""
_ORDER = (*_BODY, *range(18, POINTS + 1))


def letterbox(photo: Pixels) -> tuple[NDArray[np.float32], float]:
    """A photograph, (H, W, 3) RGB, at the upper left of grey: (1, 3, 640, 640) BGR, 0..255; its scale."""
    height, width = photo.shape[:2]
    scale = min(SIDE / height, SIDE / width)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    canvas = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    cv2 = opencv()
    canvas[: size[1], : size[0]] = cv2.resize(photo, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)[None], np.float32), scale


def persons(answer: Floats, scale: float, person: float, overlap: float) -> Floats:
    """The boxes of persons in pixels of the photograph, the surest first.

    Args:
        answer: (1, 8400, 85): place and logarithm of size in cells, then certainties of an object and of
            each class, a person first.
        scale: Of `letterbox`.
        person: Certainty that a box must exceed.
        overlap: Share of both that two boxes may have in common.

    Returns:
        (N, 4): left, upper, right, lower.
    """
    rows = answer[0].astype(np.float32)
    corners, strides = _cells()
    sure = rows[:, 4] * rows[:, 5]
    kept = sure > person
    rows, sure, corners, strides = rows[kept], sure[kept], corners[kept], strides[kept]
    with np.errstate(over="ignore", invalid="ignore"):
        middle, size = (rows[:, :2] + corners) * strides, np.exp(rows[:, 2:4]) * strides
        boxes = np.concatenate([middle - size / 2, middle + size / 2], 1) / np.float32(scale)
    usable = np.isfinite(boxes).all(1) & (np.abs(boxes) < 1e6).all(1) & (size > 1).all(1)
    boxes, sure = boxes[usable], sure[usable]
    return boxes[_apart(boxes, sure, overlap)].astype(np.float64)


def _cells() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each row: (column, row) of its cell, and the cell's side in pixels."""
    corners, strides = [], []
    for stride in STRIDES:
        count = SIDE // stride
        down, across = np.divmod(np.arange(count * count), count)
        corners.append(np.stack([across, down], 1))
        strides.append(np.full((count * count, 1), stride))
    return np.concatenate(corners).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _apart(boxes: Floats, sure: Floats, overlap: float) -> list[int]:
    """Which remain when each box removes those less sure that it overlaps too much; edges count as pixels."""
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    left = list(np.argsort(sure)[::-1])
    kept: list[int] = []
    while left:
        first, rest = left[0], np.array(left[1:], int)
        kept.append(int(first))
        upper, lower = (
            np.maximum(boxes[first, :2], boxes[rest, :2]),
            np.minimum(boxes[first, 2:], boxes[rest, 2:]),
        )
        common = np.maximum(0, lower - upper + 1).prod(1)
        shared = common / (areas[first] + areas[rest] - common)
        left = list(rest[shared <= overlap])
    return kept


def crop(photo: Pixels, box: Floats) -> tuple[NDArray[np.float32], Floats, Floats]:
    """What RTMPose sees of a box: the part with a margin, (1, 3, 384, 288) normalised RGB.

    Returns:
        It, its middle in the photograph, and its width and height there.
    """
    cv2 = opencv()
    width, height = CROP
    middle, size = (box[:2] + box[2:]) * 0.5, (box[2:] - box[:2]) * MARGIN
    wide = size[0] > size[1] * (width / height)
    size = np.array([size[0], size[0] / (width / height)] if wide else [size[1] * (width / height), size[1]])
    triangle = np.array([[0, 0], [0, -0.5], [-0.5, -0.5]])
    there = (middle + size[0] * triangle).astype(np.float32)
    here = (np.array([width, height]) * 0.5 + width * triangle).astype(np.float32)
    part = cv2.warpAffine(photo, cv2.getAffineTransform(there, here), CROP, flags=cv2.INTER_LINEAR)
    seen = ((part - MEAN) / DEVIATION).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(seen, np.float32), middle, size


def points(across: Floats, down: Floats, middle: Floats, size: Floats) -> tuple[Floats, Floats]:
    """Points of one person in pixels of the photograph.

    Args:
        across: (1, 133, 576): how much speaks for each half pixel of the width.
        down: (1, 133, 768): of the height.
        middle: Of `crop`.
        size: Of `crop`.

    Returns:
        (133, 2) x and y, and (133,) certainties.
    """
    places = np.stack([across[0].argmax(1), down[0].argmax(1)], 1).astype(np.float32)
    sure = 0.5 * (across[0].max(1) + down[0].max(1))
    places[sure <= 0] = -1
    return places / SPLIT / np.array(CROP) * size + middle - size / 2, sure.astype(np.float64)


def in_order(places: Floats, sure: Floats, joint: float) -> tuple[Floats, Floats]:
    """COCO's 133 points as 134: OpenPose's 18, feet, face (68), left and right hand (21 each).

    The neck is the shoulders' middle, seen where both are surer than ``joint``.
    """
    neck = places[[5, 6]].mean(0)
    seen = float(bool((sure[[5, 6]] > joint).all()))
    places, sure = np.insert(places, 17, neck, axis=0), np.insert(sure, 17, seen)
    return places[list(_ORDER)], sure[list(_ORDER)]
