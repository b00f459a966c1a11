"""How do hidden pixels, which are to be painted anew, survive in a PNG?

A map of 8 bits has no -1. In memory the hole is ``map.info["hidden"]``, mode L, white where a pixel is
hidden. In a file it is transparent, as programs of pictures and ComfyUI take a hole, and it is kept as text
too, since ``convert("RGB")`` drops transparency.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from controlkit.errors import HintError
from controlkit.images.files import open_image

MEMORY = "hidden"
"""In ``Image.info``: the hole as a picture."""
KEYWORD = "controlkit-hidden"
"""Of the PNG's text: the hole as a PNG of one bit, as base64."""


def hidden_of(image: Any) -> Image.Image | None:
    """The hole of a map, made or read from a file that controlkit wrote; None where it has none.

    Args:
        image: Anything.

    Returns:
        Mode L, of the map's size, white where a pixel is hidden.

    Raises:
        HintError: The map was cropped or resized without its hole, or what the file says of it is damaged.
    """
    about: Mapping[Any, Any] = image.info if isinstance(image, Image.Image) else {}
    if isinstance(made := about.get(MEMORY), Image.Image):
        hole = made.convert("L")
    elif KEYWORD not in about:
        return None
    elif image.mode == "RGBA":
        hole = image.getchannel("A").point([255 * (alpha < 128) for alpha in range(256)])
    else:
        hole = _read(str(about[KEYWORD]))
    if hole.size != image.size:
        raise HintError(
            "image",
            found=f"a map of {image.size}, its hidden part {hole.size}",
            expected="one size",
            fix="Crop or resize the photograph and its mask first, then make the map.",
        )
    return hole


def _read(text: str) -> Image.Image:
    """The hole that a text holds."""
    try:
        return open_image(io.BytesIO(base64.b64decode(text, validate=True)), notes=[]).convert("L")
    except ValueError as error:  # of base64 and of pictures
        raise HintError(
            "image",
            found="a map whose hidden part is damaged",
            expected="a PNG as controlkit wrote it",
            fix="Make the map again.",
            code="CK-H10",
        ) from error


def as_saved(image: Image.Image) -> tuple[Image.Image, dict[str, str]]:
    """A map as a PNG should have it, and the text that goes with it.

    Args:
        image: Any picture.

    Returns:
        Where pixels are hidden: RGBA, these transparent and black, and the text. Otherwise the picture
        itself, and no text.

    Raises:
        HintError: As `hidden_of`.
    """
    hole = hidden_of(image)
    if hole is None:
        return image, {}
    gone = hole.point([255 * (value > 127) for value in range(256)])
    shown = image.convert("RGB")
    shown.paste((0, 0, 0), mask=gone)
    shown.putalpha(gone.point([255 - value for value in range(256)]))
    buffer = io.BytesIO()
    gone.convert("1", dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return shown, {KEYWORD: base64.b64encode(buffer.getvalue()).decode("ascii")}
