"""Write a whole file or none, and clear away what a kill left half written."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_START, _END = ".controlkit-", ".part"


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, then give it that name.

    Raises:
        OSError: It cannot be written; what was there is intact.
    """
    part = part_of(path)
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """A free temporary name in the folder of ``path``."""
    return path.with_name(f"{_START}{secrets.token_hex(6)}{_END}")


def clear_parts(folder: Path) -> None:
    """Remove temporary files that a killed run left in a folder and below it."""
    for part in folder.rglob(f"{_START}*{_END}"):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
