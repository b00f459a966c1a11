"""Maps kept for other runs, by what they were made of: a folder of bounded size."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

from controlkit.batch.writing import write_whole
from controlkit.errors import ParameterError

VARIABLE = "CONTROLKIT_MAP_CACHE"
MAX_BYTES = 2_000_000_000
_EVERY = 256
_SUFFIX = ".map"


class MapCache:
    """PNG files by key; the ones not used for the longest time make room.

    Several processes may share one. A damaged entry counts as absent. Where the folder cannot be written to,
    nothing is kept, and nothing else changes.

    Args:
        folder: Where; made when the first map is kept.
        max_bytes: About how large it may grow.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 1:
            raise ParameterError("max_bytes", found=str(max_bytes), expected="at least 1 byte")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._since = _EVERY
        self._size = 0

    def get(self, key: str) -> bytes | None:
        """The PNG file under a key, a SHA-256 in hexadecimal; None where it is not there."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, png = content[:32], content[32:]
        if hashlib.sha256(png).digest() != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return png

    def put(self, key: str, png: bytes) -> None:
        """Keep a PNG file."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, hashlib.sha256(png).digest() + png)
        except OSError:
            return
        self._size += len(png) + 32
        self._since += 1
        if self._size > self.max_bytes or self._since >= _EVERY:
            self._trim()

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise ParameterError("key", found=repr(key)[:80], expected="a SHA-256 in hexadecimal")
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _trim(self) -> None:
        """Measure the folder, and remove the oldest down to nine tenths where it has grown too large."""
        entries: list[tuple[int, int, Path]] = []
        for path in self.folder.rglob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                about = path.stat()
                entries.append((about.st_mtime_ns, about.st_size, path))
        self._since = 0
        self._size = sum(size for _, size, _ in entries)
        if self._size <= self.max_bytes:
            return
        for _, size, path in sorted(entries):
            if self._size <= 0.9 * self.max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            self._size -= size
