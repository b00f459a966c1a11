"""OpenCV, imported when a detector first needs it, and never used to decode files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from controlkit.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REQUIREMENT = "opencv-python-headless"


def opencv() -> Any:
    """The module ``cv2``.

    Raises:
        MissingExtra: It is not installed, or does not load.
    """
    try:
        return import_module("cv2")
    except ImportError as error:
        raise MissingExtra(
            "this detector needs OpenCV",
            found=str(error),
            expected="the module cv2",
            fix=f"Run: pip install {REQUIREMENT}",
        ) from error


def gaussian(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur, ``cv2.GaussianBlur`` with the kernel size that it derives from sigma (in pixels)."""
    return opencv().GaussianBlur(image, (0, 0), sigma)
