"""Regions as options: a mask that comes with the picture, or a box in fractions of it."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlkit.errors import HintError, ParameterError
from controlkit.images import as_mask


class Region(str):
    """A mask, or strokes, given as the option of a detector.

    As a text it tells size and digest, so that records of a run, which are texts and numbers, can hold it;
    equal regions are equal texts.

    Attributes:
        pixels: (height, width) uint8; 0 outside, 255 inside.
    """

    pixels: NDArray[np.uint8]

    @classmethod
    def read(cls, value: Any, what: str) -> Region:
        """Read a mask as `controlkit.images.as_mask` does.

        Raises:
            HintError: It cannot be used, or is more than one.
        """
        if isinstance(value, cls):
            return value
        rows = as_mask(value, what=what, any_aspect=True)
        if isinstance(rows, list) or rows.shape[0] != 1:
            raise HintError(
                what, found="several pictures", expected="one", fix="Pass them one by one.", code="CK-H20"
            )
        pixels = (rows[0, 0] * 255).round().byte().cpu().numpy()
        height, width = pixels.shape
        digest = sha256(pixels.tobytes()).hexdigest()[:16]
        region = cls(f"{width} x {height}, sha256 {digest}")
        region.pixels = pixels
        return region

    def at(self, height: int, width: int, what: str) -> NDArray[np.uint8]:
        """The region at the size of a picture, (height, width): resized by nearest neighbour.

        Raises:
            ParameterError: Its proportions are another picture's.
        """
        tall, wide = self.pixels.shape
        if abs(wide * height - width * tall) > max(wide, tall, width, height):
            raise ParameterError(
                what,
                found=f"{wide} x {tall} pixels",
                expected=f"the proportions of the picture, {width} x {height}",
                fix="Make it for this picture, at its size.",
            )
        rows, columns = np.arange(height) * tall // height, np.arange(width) * wide // width
        return self.pixels[rows[:, None], columns]


def box_pixels(box: str, height: int, width: int, what: str) -> tuple[int, int, int, int]:
    """A box in pixels: left, top, right, bottom; right and bottom are outside, at least one pixel each.

    Args:
        box: Four numbers in [0, 1], as in ``0.1, 0.2, 0.9, 1``: fractions of width and height.
        height: Of the picture.
        width: Of the picture.
        what: Name for errors.

    Raises:
        ParameterError: The text is not such a box.
    """
    try:
        left, top, right, bottom = (float(part) for part in box.replace(",", " ").split())
    except ValueError:
        left = top = right = bottom = -1.0
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ParameterError(
            what,
            found=repr(box)[:80],
            expected="left, top, right, bottom as fractions of the picture, as in '0.1,0.1,0.9,0.9'",
            fix="Divide pixels by width and height; left is below right, top below bottom.",
        )
    x, y = min(int(left * width), width - 1), min(int(top * height), height - 1)
    return x, y, max(x + 1, round(right * width)), max(y + 1, round(bottom * height))
