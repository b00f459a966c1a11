"""Reading safetensors files: the header is checked in full before a single byte of weights is read.

A file is a header length (8 bytes, little endian), a JSON header, and the tensors' bytes without gaps. What
the format promises is checked here and not assumed: unique names, ranges that fit shape and dtype, that do
not overlap, leave no hole and end where the file ends.

Source:
    The format description in the README of huggingface/safetensors; written for this file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from controlkit.errors import CheckpointCorrupt, Unsupported

MAX_HEADER = 4 << 20
"""Bytes. The format allows 100 MB; 10 000 tensors, more than any model of this field, need under 2 MB."""
MAX_NAME = 1000
"""Characters of a tensor's name."""
_MAX_LISTS = 50_000
"""Opening brackets in a header, two for a tensor: every list is an object, of many times its text's bytes."""
_CHUNK = 16 << 20

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}

_AGAIN = "Download the file again."


@dataclass(frozen=True)
class Entry:
    """One tensor of the header: where its bytes lie, counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A header that has passed every check. ``entries`` are in the order of their bytes."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    raw: bytes


def read_header(file: IO[bytes], size: int, what: str) -> Header:
    """Read and check the header; the file is left at the first byte of the tensors.

    Args:
        file: At its beginning.
        size: Of the whole file in bytes.
        what: Its name, for errors.

    Raises:
        CheckpointCorrupt: Anything that the format forbids, or a limit of this reader.
        Unsupported: A dtype that torch has no name for.
    """
    prefix = _read(file, 8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise CheckpointCorrupt(
            what,
            found=f"{size} bytes",
            expected=f"{length + 8 if len(prefix) == 8 else 8} for the header alone",
            fix=f"The file is cut off or damaged. {_AGAIN}",
            code="CK-L01" if length <= MAX_HEADER else "CK-L03",
        )
    if length > MAX_HEADER:
        raise CheckpointCorrupt(
            what,
            found=f"a header of {length} bytes",
            expected=f"at most {MAX_HEADER}",
            fix=f"No control has that many tensors. {_AGAIN}",
            code="CK-L03",
        )
    raw = _read(file, length)
    header = parse_header(raw, size - 8 - length, what)
    return Header(header.entries, header.metadata, prefix + raw)


def parse_header(raw: bytes, data_size: int, what: str) -> Header:
    """Check the JSON text of a header against the number of bytes that follow it."""
    if (lists := raw.count(b"[")) > _MAX_LISTS:  # a million small lists take a second to parse
        raise _bad(what, f"a header with {lists} lists", f"at most {_MAX_LISTS}", "CK-L09")
    listed = _load_json(raw, what)
    metadata = listed.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _bad(what, "metadata that is not an object", "names and texts", "CK-L04")
    entries = {name: _entry(name, value, what) for name, value in listed.items()}
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end, before = 0, "the header"
    for name, entry in entries.items():
        if entry.start != end:
            relation = "overlaps" if entry.start < end else f"leaves {entry.start - end} bytes unused after"
            raise _bad(what, f"{name!r}, which {relation} {before!r}", "tensors side by side", "CK-L06")
        end, before = entry.stop, name
    if end > data_size:
        raise _bad(what, f"{data_size} bytes of weights", f"{end}; the file is cut off", "CK-L01")
    if end < data_size:
        raise _bad(what, f"{data_size - end} bytes after the last tensor", "none", "CK-L08")
    texts = {str(key): str(value) for key, value in metadata.items()}
    return Header(entries, texts, raw)


def read_tensors(
    file: IO[bytes], header: Header, wanted: Collection[str], what: str, digest: hashlib._Hash | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Read tensors in the order of the file, which is at the first byte of the tensors.

    Every byte goes once from the file into the tensor's own memory. The digest is computed on the way by
    another thread, over the bytes that were used.

    Args:
        file: As `read_header` left it.
        header: From the same file.
        wanted: Names to yield; others are skipped, or only hashed.
        what: The file's name, for errors.
        digest: Updated with every byte of the file.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:

        def update(part: bytes | memoryview) -> None:
            if digest is not None:
                pending.append(pool.submit(digest.update, part))
                while len(pending) > 64:
                    pending.pop(0).result()

        pending: list[Any] = []
        update(header.raw)
        for name, entry in header.entries.items():
            size = entry.stop - entry.start
            if name in wanted:
                tensor = torch.empty(entry.shape, dtype=entry.dtype)
                if size:
                    view = bytes_of(tensor)
                    _fill(file, view, name, what)
                    update(view)
                yield name, tensor
            elif digest is None:
                file.seek(size, 1)
            else:
                for offset in range(0, size, _CHUNK):
                    part = memoryview(bytearray(min(_CHUNK, size - offset)))
                    _fill(file, part, name, what)
                    update(part)
        for job in pending:
            job.result()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU that has at least one element; not a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _load_json(raw: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            name = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise _bad(what, f"{name[:80]!r} twice in the header", "unique names", "CK-L05")
        return result

    def no_constant(text: str) -> Any:
        raise ValueError(f"{text} at char {_place_of(text, raw.decode())} is not JSON")

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointCorrupt):
            raise
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else f": {error}"
        where = ": nested too deeply" if isinstance(error, RecursionError) else where
        raise _bad(what, f"a header that is not JSON{where}"[:200], "a JSON object", "CK-L04") from None
    if not isinstance(header, dict):
        raise _bad(what, f"a header that is a {type(header).__name__}", "a JSON object", "CK-L04")
    return header


def _place_of(constant: str, text: str) -> int:
    """Where a word stands outside of quotes."""
    matches = re.finditer(rf'"(?:[^"\\]|\\.)*"|{constant}', text)
    return next((match.start() for match in matches if match[0] == constant), 0)


def _entry(name: str, value: Any, what: str) -> Entry:
    if len(name) > MAX_NAME:
        raise _bad(what, f"a name of {len(name)} characters", f"at most {MAX_NAME}", "CK-L09")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(what, f"{name!r} without dtype, shape and data_offsets", "all three", "CK-L04")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise _bad(what, f"{name!r} with shape {shape!r:.60} at {offsets!r:.60}", "natural numbers", "CK-L06")
    if offsets[1] < offsets[0]:
        found = f"{name!r:.200}, which begins at {offsets[0]} and ends at {offsets[1]}"
        raise _bad(what, found, "tensors side by side", "CK-L06")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Unsupported(
            f"{what}: {name!r:.100}",
            found=f"dtype {dtype!r:.40}",
            expected=f"one of {', '.join(DTYPES)}",
            fix="Convert it to F16 with the program that wrote it.",
            code="CK-L10",
        )
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != needed:
        raise _bad(
            what,
            f"{name!r} with {offsets[1] - offsets[0]} bytes",
            f"{needed:.30g} for shape {shape} in {dtype}",
            "CK-L07",
        )
    return Entry(DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values
    )


def _bad(what: str, found: str, expected: str, code: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        what, found=found, expected=expected, fix=f"The file is damaged. {_AGAIN}", code=code
    )


def _read(file: IO[bytes], count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := file.read(min(count, _CHUNK))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _fill(file: IO[bytes], view: memoryview, name: str, what: str) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise _bad(
                what, f"an end of the file within {name!r}", f"{len(view) - done} bytes more", "CK-L01"
            )
        done += count
