"""Inpaint: the picture with the part to be painted anew marked as hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlkit.errors import ParameterError
from controlkit.images.hidden import hidden_of
from controlkit.preprocessors.base import Detector, Pixels, option
from controlkit.preprocessors.regions import Region, box_pixels


@dataclass(frozen=True)
class Inpaint(Detector):
    """The picture with a hole, for ``inpaint`` ControlNets, which read -1 in every channel of a hidden pixel.

    A picture of 8 bits has no -1, so hidden pixels are black in it and ``map.info["hidden"]`` holds the
    hole, white on black, mode L. ``module.on(map)`` and ``module.on(photo, detect="inpaint", …)`` read it;
    `marked` gives the numbers. In the files of ``controlkit preprocess`` hidden pixels are transparent, and
    ``module.on(ck.open_image("map.png"))`` reads them; ``controlkit.images.as_saved`` makes such a picture.

    Source:
        Zhang, "ControlNet 1.1 Inpaint" (2023): pixels whose mask is above one half become -1.
    """

    name = "inpaint"
    family = "inpaint"
    meaning = "the picture; the part to be painted anew hidden: -1, shown black"
    hides = True

    mask: Region | None = option(  # noqa: RUF009
        None, meaning="white: to be painted anew; the mask as a picture or array"
    )
    box: str = option("", meaning="instead of a mask: left, top, right, bottom as fractions, 0.2,0.2,0.8,0.8")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mask is None) == (not self.box):
            raise ParameterError(
                "inpaint: mask",
                found="neither mask nor box" if self.mask is None else "mask and box",
                expected="one of them, which says what is to be painted anew",
                fix="Pass mask=a picture (white: anew), or box='0.2,0.2,0.8,0.8'.",
            )
        if self.box:
            box_pixels(self.box, 1, 1, "inpaint: box")

    def detect(self, photo: Pixels) -> Pixels:
        height, width = photo.shape[:2]
        hidden = np.zeros((height, width), np.uint8)
        if self.mask is not None:
            hidden[self.mask.at(height, width, "inpaint: mask") > 127] = 255
        else:
            left, top, right, bottom = box_pixels(self.box, height, width, "inpaint: box")
            hidden[top:bottom, left:right] = 255
        return np.dstack([np.where(hidden[..., None] > 0, 0, photo).astype(np.uint8), hidden])


def marked(image: Any) -> Any:
    """A map with hidden pixels as numbers.

    Args:
        image: What `preprocess` returned, or such a map from a file that controlkit wrote, or anything else,
            which comes back as it is; lists by entry.

    Returns:
        (height, width, 3) float32 in [0, 1], hidden pixels -1.

    Raises:
        HintError: The map was cropped or resized, and its hidden part was not, or it cannot be read.
    """
    if isinstance(image, list | tuple):
        return [marked(entry) for entry in image]
    hidden = hidden_of(image)
    if hidden is None:
        return image
    values: NDArray[np.float32] = np.divide(np.asarray(image.convert("RGB")), 255, dtype=np.float32)
    values[np.asarray(hidden) > 127] = -1
    return values
