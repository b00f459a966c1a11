"""The zip container of `torch.save`: that it reads the same for everybody, and holds no more than it shows.

torch reads it by another library than Python's. Where the two could see different things (two directories,
two entries of one name, names that end early), a file is refused, so that what was checked is what is read.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from controlkit.checkpoints.opcodes import CONVERT
from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointUnsafe,
    NotACheckpoint,
    Unsupported,
)

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_SOUGHT, _SOUGHT_FAR = 1 << 16, 1 << 24
"""Bytes from the end in which the directory is looked for; more where the file must be refused anyhow."""
_FAULTS = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, struct.error)


class Archive:
    """A checked archive; entries are named without its top folder."""

    def __init__(self, archive: zipfile.ZipFile, root: str, what: str) -> None:
        self._archive, self._root, self._what = archive, root, what
        self._entries = {entry.filename: entry for entry in archive.infolist()}

    def size_of(self, name: str) -> int | None:
        """Bytes of an entry, or None where there is none."""
        entry = self._entries.get(f"{self._root}{name}")
        return None if entry is None else entry.file_size

    def checksum_of(self, name: str) -> int:
        """The CRC-32 that the directory gives for an entry."""
        return self._entries[f"{self._root}{name}"].CRC

    def read(self, name: str) -> bytes:
        """The content of an entry, whose checksum is compared.

        Raises:
            CheckpointCorrupt: It differs, or the entry cannot be read.
        """
        with _damage_is_ours(self._what):
            return self._archive.read(f"{self._root}{name}")


def open_archive(file: IO[bytes], size: int, what: str) -> Archive:
    """Check the directory of an archive. Checksums are compared where an entry is read.

    Raises:
        CheckpointUnsafe: Compressed, encrypted, overlapping or ambiguous.
        CheckpointCorrupt: Cut off or damaged.
        Unsupported: A TorchScript program.
        NotACheckpoint: An archive that `torch.save` did not write.
    """
    with _damage_is_ours(what):
        _check_end(file, size, what)
        archive = zipfile.ZipFile(file)
        return Archive(archive, _check_entries(archive, size, what), what)


@contextmanager
def _damage_is_ours(what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        ValueError,
        RuntimeError,
        struct.error,
    ) as error:
        raise _damaged(what, f"a damaged archive ({error})"[:200]) from None
    except OSError as error:
        if error.errno is not None and error.strerror != "Invalid argument":
            raise  # the disk
        raise _damaged(what, "a damaged archive (it points outside itself)") from None


def _check_end(file: IO[bytes], size: int, what: str) -> None:
    """The directory must lie right before the end of the file, where its size and its offset agree."""
    tail = _tail(file, size, _END.size + _LOCATOR.size + _END_64.size + _SOUGHT)
    if tail[-_END.size :][:4] != b"PK\5\6":
        if b"PK\5\6" not in tail and b"PK\5\6\0\0\0\0" in (more := _tail(file, size, _SOUGHT_FAR)):
            tail = more
        after = len(tail) - _END.size - tail.rfind(b"PK\5\6")
        if b"PK\5\6" in tail:
            raise CheckpointCorrupt(
                what,
                found=f"{after} bytes after the end of the archive" if after > 0 else f"{size} bytes",
                expected="none" if after > 0 else f"{size - after}; the file is cut off",
                fix="The file is damaged. Download it again.",
                code="CK-L08" if after > 0 else "CK-L01",
            )
        raise CheckpointCorrupt(
            what,
            found=f"{size} bytes that begin like a zip archive, without the directory that ends one",
            expected="a whole archive, with nothing after it",
            fix="The file is cut off or damaged. Download it again.",
            code="CK-L01",
        )
    _, disk, first_disk, here, total, length, offset, comment = _END.unpack(tail[-_END.size :])
    begin = size - _END.size
    if tail[-_END.size - _LOCATOR.size :][:4] == b"PK\6\7":
        begin -= _LOCATOR.size + _END_64.size
        record = _END_64.unpack(tail[-_END.size - _LOCATOR.size - _END_64.size :][: _END_64.size])
        _, _, place, _ = _LOCATOR.unpack(tail[-_END.size - _LOCATOR.size :][: _LOCATOR.size])
        large = (record[6], record[7], record[8], record[9])
        small = (here, total, length, offset)
        limits = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        agree = all(a in (b, most) for a, b, most in zip(small, large, limits, strict=True))
        if record[0] != b"PK\6\6" or record[1] != 44 or place != begin or not agree:
            raise _ambiguous(what, "two directories that differ")
        here, total, length, offset = large
    if disk or first_disk or here != total or comment or offset + length != begin:
        raise _ambiguous(what, "a directory elsewhere than before the end of the file")


def _tail(file: IO[bytes], size: int, count: int) -> bytes:
    file.seek(max(0, size - count))
    return file.read() or b""


def _check_entries(archive: zipfile.ZipFile, size: int, what: str) -> str:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    leaves = [name.rpartition("/")[2] for name in names]
    if "constants.pkl" in leaves:
        raise Unsupported(
            what,
            found="a TorchScript program",
            expected="weights",
            fix="Load it with torch.jit.load and save its state_dict() as safetensors.",
            code="CK-L17",
        )
    if "data.pkl" not in leaves:
        inside = "NumPy arrays (an .npz file)" if any(name.endswith(".npy") for name in names) else "files"
        raise NotACheckpoint(
            what,
            found=f"a zip archive with {len(names)} {inside}",
            expected="one that torch.save wrote",
            fix="If it holds weights, unpack it and give the weight file.",
            code="CK-L11",
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _bomb(what, "compressed entries")
    if any(entry.flag_bits & 0x2041 for entry in entries):
        raise _bomb(what, "encrypted entries")
    if leaves.count("data.pkl") > 1 or len({name.lower() for name in names}) != len(names):
        raise _ambiguous(what, "the same entry twice")
    odd = [entry for entry in entries if entry.filename != entry.orig_filename or not _plain(entry.filename)]
    root, slash, _ = names[0].partition("/")
    if odd or not slash or f"{root}/data.pkl" not in names:
        raise _ambiguous(what, f"the entry {odd[0].orig_filename!r:.60}" if odd else "no folder of its own")
    # What torch takes for a folder, or for empty, it leaves as it found the memory.
    if any(entry.external_attr & 0x10 or entry.compress_size != entry.file_size for entry in entries):
        raise _ambiguous(what, "an entry that is a folder, or of two sizes")
    if sum(entry.file_size for entry in entries) > size:
        raise _bomb(what, "entries that overlap")
    return f"{root}/"


def _plain(name: str) -> bool:
    is_text = name.isascii() and name.isprintable() and not name.endswith("/")
    return is_text and "\\" not in name and ".." not in name.split("/")


def _damaged(what: str, found: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        what,
        found=found,
        expected="one that can be read",
        fix="Download the file again.",
        code="CK-L15",
    )


def _ambiguous(what: str, found: str) -> CheckpointUnsafe:
    return CheckpointUnsafe(
        what, found=found, expected="one reading of the archive", fix=CONVERT, code="CK-L15"
    )


def _bomb(what: str, found: str) -> CheckpointUnsafe:
    return CheckpointUnsafe(
        what, found=found, expected="stored ones, as torch.save writes", fix=CONVERT, code="CK-L16"
    )
