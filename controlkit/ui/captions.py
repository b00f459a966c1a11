"""The scores under pictures: in words, and in the files of the pictures, where the gallery finds them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = "controlkit-adherence"
"""Keyword of the PNG text chunk with the scores of a picture."""


LONGEST = 64_000_000
"""Bytes of a text chunk that are read."""


def chunk(scores: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The text chunk of a picture's scores; none where there are none."""
    return {CHUNK: json.dumps(list(scores))} if scores else {}


def lines(scores: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each score: ``control 1: edges 0.83 (F1, by canny)``."""
    return [f"control {score['control'] + 1}: {score['text']}" for score in scores]


def brief(scores: Sequence[dict[str, Any]]) -> list[str]:
    """The measured ones, short: ``edges 0.83``."""
    return [f"{score['measure']} {score['value']:.2f}" for score in scores if score["value"] is not None]


def of_file(path: Path) -> list[dict[str, Any]]:
    """The scores in the file of a picture; none where there are none, or it cannot be read."""
    try:
        return list(_read(path, path.stat().st_mtime_ns))
    except (OSError, ValueError, KeyError, TypeError):
        return []


@lru_cache(maxsize=512)
def _read(path: Path, _stamp: int) -> tuple[dict[str, Any], ...]:
    text = text_of(path, CHUNK)
    found = json.loads(text) if text else []
    return tuple({"control": int(each["control"]), **each} for each in found)


def text_of(path: Path, keyword: str) -> str:
    """A text chunk (iTXt) before the pixels of a PNG file, without reading the others; empty: there is none.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        return _text_of(stream, keyword)


def text_in(content: bytes, keyword: str) -> str:
    """As `text_of`, from the bytes of a file."""
    return _text_of(io.BytesIO(content), keyword)


def _text_of(stream: BinaryIO, keyword: str) -> str:
    if stream.read(8) != b"\x89PNG\r\n\x1a\n":
        return ""
    for _ in range(64):
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind in (b"IDAT", b"IEND"):
            return ""
        start = stream.tell()
        if kind == b"iTXt" and stream.read(len(keyword) + 1) == keyword.encode("latin-1") + b"\0":
            return _text(stream.read(min(length - len(keyword) - 1, LONGEST)))
        stream.seek(start + length + 4)
    return ""


def _text(content: bytes) -> str:
    """What follows the keyword: a flag, a method, a language, a translated keyword, the text."""
    if content[:1] != b"\0":
        return ""  # compressed, as we never write it
    text = content[2:].partition(b"\0")[2].partition(b"\0")[2]
    return text.decode("utf-8", "replace")
