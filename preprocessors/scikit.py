"""scikit-image, imported when a detector first needs it."""

from __future__ import annotations

from typing import Any

from controlkit.extras import needed

REQUIREMENT = "scikit-image"


def scikit_image(module: str) -> Any:
    """A module of scikit-image, such as ``segmentation``.

    Raises:
        MissingExtra: It is not installed, or does not load.
    """
    return needed(f"skimage.{module}", "this detector needs scikit-image", REQUIREMENT)
