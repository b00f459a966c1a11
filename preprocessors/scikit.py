"""scikit-image, imported when a detector first needs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from controlkit.errors import MissingExtra

REQUIREMENT = "scikit-image"


def scikit_image(module: str) -> Any:
    """A module of scikit-image, such as ``segmentation``.

    Raises:
        MissingExtra: It is not installed, or does not load.
    """
    try:
        return import_module(f"skimage.{module}")
    except ImportError as error:
        raise MissingExtra(
            "this detector needs scikit-image",
            found=str(error),
            expected=f"the module skimage.{module}",
            fix=f"Run: pip install {REQUIREMENT}",
        ) from error
