"""OpenCV, imported when a detector first needs it, and never used to decode files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlkit.extras import needed

REQUIREMENT = "opencv-python-headless"


def opencv() -> Any:
    """The module ``cv2``.

    Raises:
        MissingExtra: It is not installed, or does not load.
    """
    return needed("cv2", "this detector needs OpenCV", REQUIREMENT)


def gaussian(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur, ``cv2.GaussianBlur`` with the kernel size that it derives from sigma (in pixels)."""
    return opencv().GaussianBlur(image, (0, 0), sigma)


def unit(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """0..255 as [0, 1]."""
    return np.divide(values, 255, dtype=np.float32)


def luma(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness (height, width) of an RGB picture: ITU-R 601, ``cv2.cvtColor``."""
    cv2 = opencv()
    return cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)


def gradient(photo: NDArray[np.uint8], *, l2: bool = False) -> NDArray[np.float32]:
    """Strength of the strongest channel's gradient, (height, width), in the units of ``cv2.Canny``."""
    cv2 = opencv()
    across, down = (cv2.Sobel(photo, cv2.CV_32F, *axis, ksize=3) for axis in ((1, 0), (0, 1)))
    strength = np.hypot(across, down) if l2 else np.abs(across) + np.abs(down)
    return strength.reshape(*photo.shape).max(axis=2)


def without_specks(marks: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """Marks (0 or 255) without those connected pieces that have fewer than ``area`` pixels."""
    cv2 = opencv()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(marks, connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= area
    kept[0] = False
    return np.where(kept[labels], 255, 0).astype(np.uint8)
