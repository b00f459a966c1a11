"""Skeletons in the look of OpenPose, as the published ``openpose`` models were trained on them.

Source:
    Limbs, colours and sizes are those of controlnet-aux's ``open_pose.util.draw_bodypose``; drawn here
    without it, to the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from controlkit.preprocessors.base import Pixels
from controlkit.preprocessors.opencv import opencv

Point = tuple[float, float]
"""x and y as shares of the picture's width and height."""
Body = Sequence[Point | None]
"""18 points in OpenPose's order; None: not seen."""

NOSE, NECK, RIGHT_SHOULDER, LEFT_SHOULDER = 0, 1, 2, 5
FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""For each of OpenPose's points its place among COCO's 17; the neck is between the shoulders."""
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_WHEEL = (
    "ff0000 ff5500 ffaa00 ffff00 aaff00 55ff00 00ff00 00ff55 00ffaa "
    "00ffff 00aaff 0055ff 0000ff 5500ff aa00ff ff00ff ff00aa ff0055"
)
COLOURS = tuple(tuple(bytes.fromhex(word)) for word in _WHEEL.split())
"""Of the points; a limb has that of its number, darkened to 60 %."""
THICKNESS = 4
"""Half the width of a limb and the radius of a point, in pixels of the map."""


def from_coco(points: Sequence[Point | None]) -> list[Point | None]:
    """OpenPose's 18 points of COCO's 17; the neck is the shoulders' middle, where both are seen."""
    body = [None if place is None else points[place] for place in FROM_COCO]
    right, left = body[RIGHT_SHOULDER], body[LEFT_SHOULDER]
    if right is not None and left is not None:
        body[NECK] = ((right[0] + left[0]) / 2, (right[1] + left[1]) / 2)
    return body


def draw(canvas: Pixels, body: Body) -> None:
    """Draw a skeleton on a picture, (H, W, 3) RGB, in place."""
    cv2 = opencv()
    height, width = canvas.shape[:2]
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        first, second = body[start], body[end]
        if first is None or second is None:
            continue
        across = np.array([first[0], second[0]]) * float(width)
        down = np.array([first[1], second[1]]) * float(height)
        length = ((down[0] - down[1]) ** 2 + (across[0] - across[1]) ** 2) ** 0.5
        angle = math.degrees(math.atan2(down[0] - down[1], across[0] - across[1]))
        centre = (int(np.mean(across)), int(np.mean(down)))
        outline = cv2.ellipse2Poly(centre, (int(length / 2), THICKNESS), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, outline, [int(part * 0.6) for part in colour])
    for point, colour in zip(body, COLOURS, strict=True):
        if point is not None:
            cv2.circle(
                canvas, (int(point[0] * width), int(point[1] * height)), THICKNESS, colour, thickness=-1
            )
