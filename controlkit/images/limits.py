"""Which sizes are accepted, and how notes reach the caller."""

from __future__ import annotations

import sys
import warnings

from controlkit.errors import ControlKitWarning, HintError, HintTooBig

MAX_PIXELS = 32_000_000
"""Most pixels of one picture, checked before it is decoded."""

MAX_ASPECT = 16
"""Longest side over shortest side beyond which a picture is taken for a mistake."""


def tell(note: str, notes: list[str] | None = None) -> None:
    """Append a note to the list that was given, or warn the caller of controlkit where there is none."""
    if notes is not None:
        notes.append(note)
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("controlkit."):
        frame, level = frame.f_back, level + 1
    warnings.warn(note, ControlKitWarning, stacklevel=level)


def check_pixels(width: int, height: int, what: str, limit: int = MAX_PIXELS) -> None:
    """Refuse a picture with more than ``limit`` pixels.

    Raises:
        HintTooBig: CK-H11.
    """
    if width * height > limit:
        raise HintTooBig(
            what,
            found=f"{width} x {height} pixels, {width * height / 1e6:.0f} million",
            expected=f"at most {limit / 1e6:g} million",
            fix="Shrink it first; a control map is best at the size of the output.",
        )


def check_size(
    width: int, height: int, what: str, *, any_aspect: bool = False, notes: list[str] | None = None
) -> None:
    """Refuse sizes that can only be mistakes, and note the odd ones.

    Raises:
        HintError: CK-H1 for a side of 0 pixels, CK-H2 for a side over `MAX_ASPECT` times the other.
        HintTooBig: CK-H11.
    """
    if width == 0 or height == 0:
        raise HintError(
            what,
            found=f"{width} x {height} pixels (width x height)",
            expected="at least one pixel each way",
            fix="Check the crop or slice that made it.",
            code="CK-H1",
        )
    check_pixels(width, height, what)
    long, short = max(width, height), min(width, height)
    if long > MAX_ASPECT * short and not any_aspect:
        raise HintError(
            what,
            found=f"{width} x {height} pixels (width x height), an aspect of {long / short:.0f}:1",
            expected=f"at most {MAX_ASPECT}:1",
            fix="Crop or pad it; where the shape is meant, pass any_aspect=True.",
            code="CK-H2",
        )
    if long == 1:
        tell(f"{what} is a single pixel: one value for the whole picture", notes)
