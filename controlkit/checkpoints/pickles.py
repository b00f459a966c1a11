"""Reading what `torch.save` wrote, without running what is in it.

First the file is surveyed: its container is checked and its pickle followed without being obeyed (see
`archives` and `opcodes`), which tells every name, shape and dtype, and that all bytes are there. Only then
torch reads it, by its own restricted unpickler (``weights_only=True``, torch 2.10 or later, whose earlier
versions had holes: CVE-2025-32434, CVE-2026-24747). There is no second try without it, and what torch gives
must be what the survey said.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from controlkit.checkpoints.archives import Archive, open_archive
from controlkit.checkpoints.opcodes import CONVERT, Described, Machine, refuse_names
from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointUnsafe,
    NotACheckpoint,
    Unsupported,
)

MAX_PICKLE = 4 << 20
"""Bytes. Ten thousand tensors need two million."""
MAX_ENTRIES = 100_000
_ROOM = 64 << 20
_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module", "net")
_FAULTS_OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Flat(Generic[_T]):
    """The tensors of a saved dict by their joined names, and remarks on what was left out."""

    tensors: dict[str, _T]
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Survey(Flat[Described]):
    """What a file of `torch.save` holds, and how to tell that torch has read it.

    ``checksum``: given the key of a storage, the CRC-32 of its bytes in the file.
    """

    checksum: Callable[[str], int] = field(default=lambda key: 0)


def survey(file: IO[bytes], size: int, container: str, what: str) -> Survey:
    """What a file of `torch.save` holds, without unpickling it.

    Args:
        file: Open for reading.
        size: Of the whole file in bytes.
        container: ``zip`` (since torch 1.6) or ``pickle`` (before).
        what: The file's name, for errors.

    Raises:
        CheckpointUnsafe: It would run code, is compressed, or torch is too old to read it safely.
        CheckpointCorrupt: It is cut off or damaged.
        NotACheckpoint: What was saved is not a dict with tensors.
        Unsupported: Quantised or sparse tensors, or another machine's byte order.
    """
    version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2])
    if version < (2, 10):
        raise CheckpointUnsafe(
            what,
            found=f"a pickle, and torch {torch.__version__}",
            expected="torch 2.10 or later, the first whose restricted unpickler has no known hole",
            fix="Update torch, or use a safetensors file.",
            code="CK-L13",
        )
    follow = _follow_zip if container == "zip" else _follow_legacy
    saved, checksum = follow(file, size, what)
    flat = flatten(_dict(saved, what), what, Described)
    copied = sum(tensor.size for tensor in flat.tensors.values())
    if copied > 2 * size + _ROOM:
        raise CheckpointUnsafe(
            what,
            found=f"tensors of {copied} bytes in a file of {size}",
            expected="tensors that are as large as their storage",
            fix=f"It is built to exhaust memory. {CONVERT}",
            code="CK-L16",
        )
    return Survey(flat.tensors, flat.notes, checksum)


def unpickle(file: IO[bytes], what: str, *, allow_pickle: bool = False) -> Mapping[Any, Any]:
    """Let torch read a file that was surveyed.

    Args:
        file: Open for reading.
        what: The file's name, for errors.
        allow_pickle: Unpickle anything, which runs whatever code the file brings. Never the default.

    Raises:
        CheckpointCorrupt: It cannot be read.
        NotACheckpoint: What was saved is not a dict.
    """
    before = _state(file)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts about protocols: what it cannot read, it refuses
            if allow_pickle:
                saved = torch.load(file, map_location="cpu", weights_only=False)
            else:
                saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FAULTS_OF_THE_DISK:
            raise
        # The unpickler fails in dozens of ways on damaged or hostile files; its text advises to switch the
        # protection off, so neither text nor error is passed on.
        raise CheckpointCorrupt(
            what,
            found=f"a file that torch.load cannot read ({type(error).__name__})",
            expected="a file written by torch.save",
            fix="Download the file again.",
            code="CK-L15",
        ) from None
    if _state(file) != before:
        raise CheckpointCorrupt(
            what,
            found="a file that changed while it was read",
            expected="the file that was checked",
            fix="Wait until whoever writes it has finished, and load it again.",
            code="CK-L34",
        )
    return _dict(saved, what)


def digest_of(file: IO[bytes]) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while part := file.read(16 << 20):
        digest.update(part)
    return digest.hexdigest()


def flatten(saved: Mapping[Any, Any], what: str, leaf: type[_T]) -> Flat[_T]:
    """All leaves of a dict that may hold dicts, by their joined names.

    Args:
        saved: What was saved, or what somebody gave.
        what: Its name, for errors.
        leaf: `Tensor`, or `Described`.

    Raises:
        NotACheckpoint: There is no tensor, or there are far too many entries.
        CheckpointCorrupt: Two tensors have the same joined name.
    """
    tensors: dict[str, _T] = {}
    others: list[str] = []
    notes: list[str] = []
    wrapped = [key for key in _WRAPPERS if _holds(_get(saved, key), leaf)]
    if wrapped:
        notes.append(f"weights taken from the entry {wrapped[0]!r}")
        if len(wrapped) > 1:
            notes[-1] += f"; there are others in {', '.join(map(repr, wrapped[1:]))}, which were left alone"
        saved = cast("Mapping[Any, Any]", _get(saved, wrapped[0]))
    budget = iter(range(MAX_ENTRIES))

    def walk(part: Mapping[Any, Any], path: str, depth: int) -> None:
        for key, value in _items(part):
            if next(budget, None) is None:
                raise _no_tensors(what, f"a dict with more than {MAX_ENTRIES:,} entries")
            name = f"{path}{key}" if isinstance(key, str | int) else f"{path}{type(key).__name__}"
            if isinstance(value, leaf) and isinstance(key, str | int):
                if name in tensors or len(name) > 1000:
                    raise CheckpointCorrupt(
                        what,
                        found=f"{name!r:.100} twice" if name in tensors else f"a name of {len(name)} letters",
                        expected="unique names of up to 1000 letters",
                        fix="Save it again with names of their own.",
                        code="CK-L05" if name in tensors else "CK-L09",
                    )
                tensors[name] = value
            elif isinstance(value, Mapping) and depth < 4:
                walk(value, f"{name}.", depth + 1)
            else:
                others.append(name)

    walk(saved, "", 0)
    if not tensors:
        raise _no_tensors(what, f"a dict with {len(saved)} entries and no tensor in it")
    if others:
        notes.append(f"{len(others)} entries that are not tensors were left out, such as {others[0]!r:.60}")
    return Flat(tensors, notes)


def check_storage(tensor: Tensor, described: Described, checksum: Callable[[str], int], what: str) -> None:
    """Compare the memory that torch has filled with the bytes of the file.

    torch leaves memory as it finds it where it takes an entry for a folder or for empty, and does not compare
    checksums.

    Raises:
        CheckpointCorrupt: They differ.
    """
    held = tensor.untyped_storage()
    stored = described.storage
    size = stored.whole * stored.dtype.itemsize
    memory = torch.empty(0, dtype=torch.uint8).set_(held).numpy().data if size else b""  # type: ignore[arg-type]
    if held.nbytes() != size or zlib.crc32(memory) != checksum(stored.key):
        raise CheckpointCorrupt(
            what,
            found=f"other bytes than the checksum says for the storage {stored.key!r:.40}",
            expected="those that were saved",
            fix="The file is damaged. Download it again.",
            code="CK-L15",
        )


def _follow_zip(file: IO[bytes], size: int, what: str) -> tuple[Any, Callable[[str], int]]:
    archive: Archive = open_archive(file, size, what)
    if (archive.size_of("data.pkl") or 0) > MAX_PICKLE:
        raise CheckpointCorrupt(
            what,
            found=f"a pickle of {archive.size_of('data.pkl')} bytes",
            expected=f"at most {MAX_PICKLE}",
            fix="No control has that many tensors. Save its state_dict() alone.",
            code="CK-L09",
        )
    data = archive.read("data.pkl")
    refuse_names(data, what)
    machine = Machine(io.BytesIO(data), what)
    saved = machine.follow()
    for key, stored in machine.storages.items():
        needed, there = stored.whole * stored.dtype.itemsize, archive.size_of(f"data/{key}")
        if there != needed:
            raise CheckpointCorrupt(
                what,
                found=f"{'no' if there is None else there} bytes for the storage {key!r:.40}",
                expected=f"{needed}",
                fix="The file is damaged. Download it again.",
                code="CK-L07",
            )
    if archive.size_of("byteorder") in range(1, 17) and archive.read("byteorder") != b"little":
        raise _other_order(what)
    return saved, lambda key: archive.checksum_of(f"data/{key}")


def _follow_legacy(file: IO[bytes], size: int, what: str) -> tuple[Any, Callable[[str], int]]:
    file.seek(0)
    data = file.read(MAX_PICKLE) or b""
    refuse_names(data, what)
    head = data[2:15]
    if head != _MAGIC and _MAGIC.startswith(head):
        raise _cut(what, size, f"{size} bytes")
    if head != _MAGIC:
        raise NotACheckpoint(
            what,
            found="a plain pickle",
            expected="a file written by torch.save",
            fix="Write it again with torch.save, or better as safetensors.",
            code="CK-L18",
        )
    pickles = io.BytesIO(data)
    machine = Machine(pickles, what)
    machine.follow()
    machine.follow()
    system = machine.follow()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise _other_order(what)
    saved, keys = machine.follow(), machine.follow()
    stored = machine.storages
    if not isinstance(keys, list) or len(keys) != len(stored) or {*map(str, keys)} != {*stored}:
        raise _cut(what, size, "another list of storages than its tensors need")
    # The bytes of each follow its number of elements.
    places: dict[str, tuple[int, int]] = {}
    needed = pickles.tell()
    for part in (stored[str(key)] for key in keys):
        places[part.key] = (needed + 8, part.whole * part.dtype.itemsize)
        needed = sum(places[part.key])
    if needed > size:
        raise _cut(what, size, f"{size} bytes", f"{needed}; the file is cut off")
    if needed < size:
        raise CheckpointCorrupt(
            what,
            found=f"{size - needed} bytes after the last tensor",
            expected="none",
            fix="The file is damaged. Download it again.",
            code="CK-L08",
        )

    def checksum(key: str) -> int:
        begin, length = places[key]
        file.seek(begin)
        found = 0
        while length > 0 and (part := file.read(min(length, 16 << 20))):
            found = zlib.crc32(part, found)
            length -= len(part)
        return found

    return saved, checksum


def _dict(saved: Any, what: str) -> Mapping[Any, Any]:
    if isinstance(saved, Mapping):
        return saved
    kind = "Tensor" if isinstance(saved, Described) else type(saved).__name__
    raise NotACheckpoint(
        what,
        found=f"a saved {kind}",
        expected="a dict of tensors",
        fix="Save module.state_dict().",
        code="CK-L18",
    )


def _items(part: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Of a dict by its class: an `OrderedDict` from a file may bring attributes that hide its methods."""
    return iter(dict.items(part) if isinstance(part, dict) else part.items())


def _get(part: Mapping[Any, Any], key: str) -> Any:
    return dict.get(part, key) if isinstance(part, dict) else part.get(key)


def _holds(part: Any, leaf: type[Any], depth: int = 0) -> bool:
    """Whether it is a dict with a tensor in it, or in one of the first dicts in it."""
    if not isinstance(part, Mapping) or depth > 2:
        return False
    values = [value for _, value in islice(_items(part), 1000)]
    return any(isinstance(value, leaf) for value in values) or any(
        _holds(value, leaf, depth + 1) for value in values[:20]
    )


def _state(file: IO[bytes]) -> tuple[int, int] | None:
    try:
        status = os.fstat(file.fileno())
    except (OSError, AttributeError):  # in memory
        return None
    return status.st_mtime_ns, status.st_size


def _no_tensors(what: str, found: str) -> NotACheckpoint:
    return NotACheckpoint(
        what, found=found, expected="a dict of tensors", fix="Save module.state_dict().", code="CK-L18"
    )


def _cut(what: str, size: int, found: str, expected: str = "a whole file of torch.save") -> CheckpointCorrupt:
    return CheckpointCorrupt(
        what,
        found=found,
        expected=expected,
        fix=f"The file ({size} bytes) is cut off or damaged. Download it again.",
        code="CK-L01",
    )


def _other_order(what: str) -> Unsupported:
    return Unsupported(
        what,
        found="numbers in another machine's byte order",
        expected="little-endian ones",
        fix="Save it as safetensors on the machine that wrote it.",
        code="CK-L17",
    )
