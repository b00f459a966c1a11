"""Packages that only some features need: imported when they are used, and one clear error without them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from controlkit.errors import MissingExtra


def needed(module: str, what: str, requirement: str) -> Any:
    """A module of an optional package.

    Args:
        module: Its name, such as ``cv2``.
        what: What needs it, in words: ``this detector needs OpenCV``.
        requirement: What ``pip install`` takes.

    Raises:
        MissingExtra: It is not installed, or does not load.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(
            what, found=str(error), expected=f"the module {module}", fix=f"Run: pip install {requirement}"
        ) from error
