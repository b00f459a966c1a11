"""Open a picture file: only known formats, only complete, never more pixels than can be afforded."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from controlkit.errors import HintError, HintTooBig, UnsupportedImage
from controlkit.images.limits import MAX_PIXELS, check_pixels
from controlkit.images.pictures import upright

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
"""Formats that are decoded. Others are never handed to a decoder."""

_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
_OTHER_MAGIC = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"<?xml": "SVG or XML",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"PK\x03\x04": "a zip archive",
    b"version https://git-lfs": "a Git LFS pointer",
}


def open_image(
    file: str | os.PathLike[str] | IO[bytes],
    *,
    max_pixels: int = MAX_PIXELS,
    notes: list[str] | None = None,
) -> Image.Image:
    """Open and decode a picture, in its own mode (16-bit stays 16-bit), upright.

    The format is found from the content. The size is read from the header and checked before anything is
    decoded. Of animations and multi-page files the first frame is read, with a note.

    Args:
        file: A path, or a binary file open for reading that can seek. Addresses are not fetched.
        max_pixels: Most pixels that are decoded.
        notes: A list to append notes to; None: each note is a `ControlKitWarning`.

    Returns:
        A decoded image that no longer needs the file.

    Raises:
        HintError: Missing, unreadable, not a regular file (CK-H22), or damaged (CK-H10).
        HintTooBig: More pixels than ``max_pixels`` (CK-H11).
        UnsupportedImage: Another format (CK-H12).
    """
    if isinstance(file, (str, os.PathLike)):
        path = _regular(os.fspath(file))
        with path.open("rb") as stream:
            return _decode(stream, _short(path.name), max_pixels, notes)
    if not (hasattr(file, "read") and hasattr(file, "seek")):
        kind = "raw bytes" if isinstance(file, (bytes, bytearray)) else f"a {type(file).__name__}"
        raise HintError(
            "file",
            found=kind,
            expected="a path, or a binary file that can seek",
            fix="Wrap bytes in io.BytesIO.",
            code="CK-H20",
        )
    return _decode(file, _short(str(getattr(file, "name", "") or "file")), max_pixels, notes)


def _short(name: str) -> str:
    """A file name fit for one line of an error message."""
    shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
    return shown if len(shown) <= 80 else f"{shown[:60]}…{shown[-16:]}"


def _regular(name: str) -> Path:
    def refuse(found: str, fix: str) -> HintError:
        return HintError(_short(name), found=found, expected="a picture file", fix=fix, code="CK-H22")

    if "://" in name[:16]:
        raise refuse("an address", "Download it first: controlkit never fetches pictures.")
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError as error:
        raise refuse("no such file", "Check the path and the working folder.") from error
    except (OSError, ValueError) as error:
        raise refuse(f"a path that cannot be read ({error})"[:200], "Check the path.") from error
    if not stat.S_ISREG(mode):
        raise refuse("a folder" if stat.S_ISDIR(mode) else "not a regular file", "Name a picture file.")
    return Path(name)


def _decode(stream: IO[bytes], what: str, max_pixels: int, notes: list[str] | None) -> Image.Image:
    start: object = b""
    try:
        stream.seek(0)
        start = stream.read(32)
        stream.seek(0)
        image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HintTooBig(
            what,
            found="far more pixels in the header than Pillow's own limit",
            expected=f"at most {max_pixels / 1e6:g} million",
            fix="Shrink it first; a control map is best at the size of the output.",
        ) from error
    except UnidentifiedImageError as error:
        raise _unidentified(start, what) from error
    except Exception as error:
        raise _damaged(what, error) from error
    check_pixels(image.width, image.height, what, max_pixels)
    return upright(image, what, notes)


def _unidentified(start: object, what: str) -> HintError:
    if not isinstance(start, bytes):
        return HintError(
            what, found="a text stream", expected="a binary file", fix="Open it with 'rb'.", code="CK-H20"
        )
    known = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if known or not start:
        return _damaged(what, f"{known} header cut off, or of a rare kind" if known else "empty file")
    kind = next((name for magic, name in _OTHER_MAGIC.items() if start.lstrip().startswith(magic)), "")
    return UnsupportedImage(
        what,
        found=kind or f"no picture format that is known (begins with {start[:8]!r})",
        expected=", ".join(FORMATS),
        fix="Convert it to PNG first.",
    )


def _damaged(what: str, cause: object) -> HintError:
    return HintError(
        what,
        found=f"a damaged picture ({cause})"[:240],
        expected="a complete file",
        fix="Download it again, or save it as PNG.",
        code="CK-H10",
    )
