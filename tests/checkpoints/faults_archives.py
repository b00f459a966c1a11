"""Rows 15 and 16 of the fault table: archives that read as two things, or as far more than they are."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from controlkit.checkpoints import load
from controlkit.errors import CheckpointCorrupt, CheckpointUnsafe, NotACheckpoint, Unsupported
from tests.checkpoints.fault_table import Maker, check, refuse
from tests.checkpoints.faults_pickles import ORDERED, REBUILD, assembled
from tests.checkpoints.files import state, storage_of, write


# L15
def rezipped(change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> Maker:
    """A file of `torch.save` whose entries were written again."""

    def make(folder: Path) -> Path:
        torch.save(state(), folder / "x.pth")
        with zipfile.ZipFile(folder / "x.pth") as old, zipfile.ZipFile(folder / "y.pth", "w") as new:
            for entry in old.infolist():
                change(new, entry, old.read(entry))
        return folder / "y.pth"

    return make


def patched(change: Callable[[bytes], bytes]) -> Maker:
    """A file of `torch.save` with other bytes."""

    def make(folder: Path) -> Path:
        torch.save(state(), folder / "x.pth")
        return write(folder / "y.pth", change((folder / "x.pth").read_bytes()))

    return make


def _flip(content: bytes) -> bytes:
    place = content.index(b"data/0") + 200
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _flag(content: bytes) -> bytes:
    place = content.index(b"PK\1\2")
    return content[: place + 8] + bytes([content[place + 8] | 1]) + content[place + 9 :]


def _as_folder(content: bytes) -> bytes:
    """torch skips what the directory calls a folder, and leaves its memory as it was."""
    place = content.rindex(b"PK\1\2", 0, content.rindex(b"x/data/8"))
    return content[: place + 38] + b"\x10" + content[place + 39 :]


def _without_size(content: bytes) -> bytes:
    place = content.rindex(b"PK\1\2", 0, content.rindex(b"x/data/8"))
    return content[: place + 20] + bytes(4) + content[place + 24 :]


def _prepended(content: bytes) -> bytes:
    """A second archive in front, which a reader that trusts the stored offset would see instead."""
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\2}.")
    return other.getvalue()[:-22] + content


def _comment(content: bytes) -> bytes:
    return content[:-2] + struct.pack("<H", 22) + content[-22:]


def _again(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename, data)
    if entry.filename.endswith("data.pkl"):
        new.writestr("other/data.pkl", data)


def _doubled(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename, data)
    if entry.filename.endswith("data.pkl"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new.writestr(entry.filename, data)


def _upper(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename, data)
    if entry.filename.endswith("data.pkl"):
        new.writestr(entry.filename.upper(), data)


def _shorter(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename, data[:-4] if "/data/" in entry.filename else data)


def _foreign(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename, b"big" if entry.filename.endswith("byteorder") else data)


refuse(15, "checksum", patched(_flip), CheckpointCorrupt, "checksum says for the storage '0'", header=False)
refuse(15, "entry_as_folder", patched(_as_folder), CheckpointUnsafe, "a folder, or of two sizes")
refuse(15, "entry_without_size", patched(_without_size), CheckpointUnsafe, "a folder, or of two sizes")
refuse(15, "encrypted", patched(_flag), CheckpointUnsafe, "encrypted", code="CK-L16")
refuse(15, "two_archives", patched(_prepended), CheckpointUnsafe, "directory elsewhere|differ")
refuse(15, "comment", patched(_comment), CheckpointUnsafe, "directory elsewhere|differ")
refuse(15, "local_name", patched(lambda c: c.replace(b"x/data.pkl", b"x/atad.pkl", 1)), CheckpointCorrupt)
refuse(
    15,
    "no_such_name",
    patched(lambda c: c.replace(b"x/data.pkl", b"x/atad.pkl")),
    NotACheckpoint,
    code="CK-L11",
)
refuse(15, "name_with_a_zero", patched(lambda c: c.replace(b"x/version", b"x/versi\0n")), CheckpointUnsafe)
refuse(15, "name_that_climbs", patched(lambda c: c.replace(b"x/version", b"x/../sion")), CheckpointUnsafe)
refuse(15, "two_pickles", rezipped(_again), CheckpointUnsafe, "the same entry twice")
refuse(15, "two_pickles_of_one_name", rezipped(_doubled), CheckpointUnsafe, "the same entry twice")
refuse(15, "two_spellings", rezipped(_upper), CheckpointUnsafe, "the same entry twice")
refuse(15, "short_storage", rezipped(_shorter), CheckpointCorrupt, "bytes for the storage '0'", code="CK-L07")
refuse(15, "byte_order", rezipped(_foreign), Unsupported, "byte order", code="CK-L17")


@check(15)
def every_flag_of_an_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the 32 bits, in the directory and before the entry: refused, or read as torch reads it."""
    torch.save(state(), folder / "x.pth")
    whole, tensors = (folder / "x.pth").read_bytes(), state()
    refused: set[tuple[int, int]] = set()
    for mark, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        for bit in range(16):
            changed = bytearray(whole)
            changed[whole.index(mark) + offset + bit // 8] ^= 1 << bit % 8
            path = write(folder / "y.pth", bytes(changed))
            try:
                found = load(path).state_dict()
            except (CheckpointUnsafe, CheckpointCorrupt):
                refused.add((offset, bit))
                continue
            real = torch.load(path, weights_only=True)
            assert all(torch.equal(found[name], real[name]) for name in tensors), (offset, bit)
            assert all(torch.equal(found[name], tensors[name]) for name in tensors), (offset, bit)
    assert {(8, 0), (8, 6), (8, 13)} <= refused


# L16 (memory in `test_faults.py`)
def deflated(folder: Path) -> Path:
    """64 MB of zeros in 64 kB."""
    with zipfile.ZipFile(folder / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 26))
    return folder / "x.pth"


def _deflate(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    kind = zipfile.ZIP_DEFLATED if "/data/" in entry.filename else zipfile.ZIP_STORED
    new.writestr(entry.filename, data, compress_type=kind)


def _tensor(rows: int, columns: int, steps: tuple[int, int]) -> bytes:
    numbers = b"".join(b"J" + struct.pack("<i", number) for number in (rows, columns))
    strides = b"".join(b"J" + struct.pack("<i", number) for number in steps)
    return REBUILD + storage_of("0", 1) + b"K\0" + numbers + b"\x86" + strides + b"\x86\x89" + ORDERED + b"tR"


GIANT = b"}X\1\0\0\0a" + _tensor(1 << 20, 1 << 20, (0, 0)) + b"s"
ONES = {"0": bytes(4)}
DOUBLED = (
    b"}q\0"
    + b"X\1\0\0\0a"
    + _tensor(1, 1, (1, 1))
    + b"s"
    + b"".join(
        b"}q%c(" % (level + 1)
        + b"".join(b"X\2\0\0\0%02dh%c" % (number, level) for number in range(90))
        + b"u"
        for level in range(4)
    )
)
COUNT = b"}X\1\0\0\0a" + REBUILD + storage_of("0", 1 << 30) + b"K\0K\1\x85K\1\x85\x89" + ORDERED + b"tRs"
refuse(16, "deflated_storages", rezipped(_deflate), CheckpointUnsafe, "compressed entries")
refuse(16, "deflated", deflated, CheckpointUnsafe, "compressed entries")
refuse(16, "one_number_as_a_terabyte", assembled(GIANT, storages=ONES), CheckpointUnsafe, "in a file of")
refuse(16, "legacy_terabyte", assembled(GIANT, zipped=False, storages=ONES), CheckpointUnsafe, "in a file of")
refuse(16, "dicts_of_dicts", assembled(DOUBLED, storages=ONES), NotACheckpoint, "more than", code="CK-L18")
refuse(16, "storage_of_gigabytes", assembled(COUNT, storages=ONES), CheckpointCorrupt, code="CK-L07")
refuse(
    16, "legacy_gigabytes", assembled(COUNT, zipped=False, storages=ONES), CheckpointCorrupt, code="CK-L01"
)
refuse(16, "instructions", assembled(b"]" * 700_000), CheckpointCorrupt, "instructions", code="CK-L09")
