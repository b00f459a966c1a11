"""The pictures that units hold: from the panel as PIL, from requests as base64; nothing is fetched."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any, cast

from controlkit.errors import ParameterError
from controlkit.images.files import open_image

LARGEST = 64 << 20
"""Most bytes of a picture that was sent."""


def read(value: Any, name: str) -> Any:
    """A picture as controls read it (PIL, an array, or a list of such); None where there is none.

    Args:
        value: What the panel or a request gave: PIL, numpy, base64 with or without ``data:…,`` before it, a
            list of these, or a dictionary with ``image``, as gradio's drawing board gives it.
        name: For errors.

    Raises:
        ParameterError: Something else.
        HintError: No picture, or one that is too large.
    """
    if isinstance(value, dict):
        drawn = cast("dict[str, Any]", value)
        return read(drawn.get("image", drawn.get("background")), name)
    if isinstance(value, list | tuple):
        found = [read(entry, name) for entry in cast("list[Any]", value) if entry is not None]
        return found or None
    if isinstance(value, str):
        return _sent(value, name) if value.strip() else None
    if value is None or hasattr(value, "size"):
        return value
    raise ParameterError(name, found=f"a {type(value).__name__}", expected="a picture, or one as base64")


def _sent(text: str, name: str) -> Any:
    head = text[:64].lstrip().lower()
    if "://" in head:
        raise ParameterError(
            name, found="an address", expected="the picture itself, as base64", fix="Nothing is fetched."
        )
    body = text.partition(",")[2] if head.startswith("data:") else text
    if len(body) > LARGEST * 4 // 3 + 4:
        raise ParameterError(name, found=f"{len(body) >> 20} MiB", expected=f"at most {LARGEST >> 20} MiB")
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ParameterError(name, found=f"{text[:20]!r}…", expected="a picture as base64") from None
    return open_image(io.BytesIO(data))
