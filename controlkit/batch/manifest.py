"""What has been made: ``manifest.jsonl``, one JSON object a line, that survives being killed at any moment.

While a run works, whole lines are appended; where a map is made again, its newest line counts. A line that
was cut off by a kill is dropped at the next start. At the end of a run every map has exactly one line, and
the lines are in order of detector and source, whatever order they were made in.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from controlkit.batch.writing import write_whole
from controlkit.errors import Busy, SaveError

NAME = "manifest.jsonl"

Line: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]
"""Detector and source: what a line is about."""


def key_of(line: Line) -> Key:
    """What a line is about."""
    return line["detector"], line["source"]


class Manifest:
    """The manifest of one folder, held by one run at a time.

    Args:
        folder: Where the maps go; made if it is not there.

    Raises:
        Busy: Another run is writing into this folder.
        SaveError: The folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._stream: IO[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder / f".{NAME}.lock")
        except OSError as error:
            raise _cannot(self.path, error) from error
        self.lines: dict[Key, Line] = {}
        self._repeats = False
        try:
            self._read()
        except BaseException:
            self._lock.close()
            raise

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _cannot(self.path, error) from error
        count = 0
        for line in _whole_lines(content):
            self.lines[key_of(line)] = line
            count += 1
        self._repeats = count != len(self.lines)
        if self._repeats or content.count(b"\n") != count or not content.endswith(b"\n"):
            self._rewrite()

    def append(self, line: Line) -> None:
        """Add a line; it replaces the one about the same map."""
        self.lines[key_of(line)] = line
        try:
            if self._stream is None:
                self._stream = self.path.open("ab", buffering=0)
            self._stream.write(_encoded(line))
        except OSError as error:
            raise _cannot(self.path, error) from error

    def close(self) -> None:
        """Put the lines in order, one for each map, and let the folder go."""
        try:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
                self._rewrite()
        finally:
            self._lock.close()

    def _rewrite(self) -> None:
        content = b"".join(_encoded(self.lines[key]) for key in sorted(self.lines))
        try:
            write_whole(self.path, content)
        except OSError as error:
            raise _cannot(self.path, error) from error


def _encoded(line: Line) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def _whole_lines(content: bytes) -> Iterator[Line]:
    """The lines that are whole; what a kill cut off, or somebody broke, is left out."""
    for text in content.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and all(isinstance(line.get(name), str) for name in ("detector", "source")):
            yield line


def _lock(path: Path) -> IO[bytes]:
    """A file that this process holds until it ends, however it ends."""
    stream = path.open("ab")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        stream.close()
        raise Busy(
            str(path.parent),
            found="another run writing its maps there",
            expected="one run a folder",
            fix="Wait for it, stop it, or choose another folder.",
        ) from error
    except OSError:  # a file system without locks: two runs at once are the user's to avoid
        with contextlib.suppress(OSError):
            stream.flush()
    return stream


def _cannot(path: Path, error: OSError) -> SaveError:
    reason = (error.strerror or str(error)).lower()
    return SaveError(
        str(path),
        found=reason,
        expected="a folder that can be written to",
        fix="What is listed there is whole; the same call goes on from it.",
    )
