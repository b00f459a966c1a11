"""Reading what `torch.save` wrote, without running what is in it.

torch's own restricted unpickler is the gate (``weights_only=True``, torch 2.10 or later, whose earlier
versions had holes: CVE-2025-32434, CVE-2026-24747). There is no second try without it. What is done here is
to look at the container first, and to say in plain words what was refused.
"""

from __future__ import annotations

import hashlib
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from controlkit.errors import CheckpointCorrupt, CheckpointUnsafe, NotACheckpoint, Unsupported

_SCANNED = 64 << 20
_SAFE = ("torch.", "torch._utils.", "torch.storage.", "collections.OrderedDict", "numpy.", "_codecs.encode")
_CONVERT = "Ask for a safetensors file, or convert it where running it does no harm."


def read_pickle(
    file: IO[bytes], container: str, what: str, *, allow_pickle: bool = False
) -> tuple[Mapping[str, Any], str]:
    """Read a file of `torch.save`.

    Args:
        file: At its beginning.
        container: ``zip`` (since torch 1.6) or ``pickle`` (before).
        what: The file's name, for errors.
        allow_pickle: Unpickle anything, which runs whatever code the file brings. Never the default.

    Returns:
        The dict that was saved, and the SHA-256 of the file.

    Raises:
        CheckpointUnsafe: It would run code, is compressed, or torch is too old to read it safely.
        CheckpointCorrupt: It cannot be read.
        NotACheckpoint: What was saved is not a dict.
    """
    version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2])
    if version < (2, 10) and not allow_pickle:
        raise CheckpointUnsafe(
            what,
            found=f"a pickle, and torch {torch.__version__}",
            expected="torch 2.10 or later, the first whose restricted unpickler has no known hole",
            fix="Update torch, or use a safetensors file.",
        )
    if container == "zip":
        _check_zip(file, what)
    digest = hashlib.sha256()
    file.seek(0)
    while part := file.read(16 << 20):
        digest.update(part)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts about protocols: what it cannot read, it refuses
            saved = torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:
        # The unpickler fails in dozens of ways on damaged or hostile files; its text advises to switch the
        # protection off, so neither text nor error is passed on.
        raise _refusal(file, container, what, error) from None
    if not isinstance(saved, Mapping):
        raise NotACheckpoint(
            what,
            found=f"a saved {type(saved).__name__}",
            expected="a dict of tensors",
            fix="Save module.state_dict().",
            code="CK-L18",
        )
    return saved, digest.hexdigest()


def flatten(saved: Mapping[Any, Any], what: str) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of a dict that may hold dicts, by their joined names; and remarks on what was left out.

    Raises:
        NotACheckpoint: There is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    notes: list[str] = []
    for wrapper in ("state_dict", "model_state_dict", "params_ema", "params"):
        if isinstance(inner := saved.get(wrapper), Mapping):
            notes.append(f"weights taken from the entry {wrapper!r}")
            saved = inner
            break

    def walk(part: Mapping[Any, Any], path: str, depth: int) -> None:
        for key, value in part.items():
            name = f"{path}{key}"
            if isinstance(value, Tensor):
                tensors[name] = value.detach()
            elif isinstance(value, Mapping) and depth < 4:
                walk(value, f"{name}.", depth + 1)
            else:
                others.append(name)

    walk(saved, "", 0)
    if not tensors:
        raise NotACheckpoint(
            what,
            found=f"a dict with {len(saved)} entries and no tensor in it",
            expected="a dict of tensors",
            fix="Save module.state_dict().",
            code="CK-L18",
        )
    if others:
        notes.append(f"{len(others)} entries that are not tensors were left out, such as {others[0]!r:.60}")
    return tensors, notes


def _check_zip(file: IO[bytes], what: str) -> None:
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
            raise Unsupported(
                what,
                found="a TorchScript program",
                expected="weights",
                fix="Load it with torch.jit.load and save its state_dict() as safetensors.",
                code="CK-L17",
            )
        if not pickles:
            raise NotACheckpoint(
                what,
                found=f"a zip archive with {len(names)} files",
                expected="one that torch.save wrote",
                fix="If it holds weights, unpack it and give the weight file.",
                code="CK-L11",
            )
        compressed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        odd = "compressed entries" if compressed else "encrypted entries"
        if compressed or any(entry.flag_bits & 0x1 for entry in entries):
            raise CheckpointUnsafe(
                what, found=odd, expected="stored ones, as torch.save writes", fix=_CONVERT, code="CK-L16"
            )
        if len(pickles) > 1 or len(set(names)) != len(names):
            raise CheckpointUnsafe(
                what, found="the same entry twice", expected="one of each", fix=_CONVERT, code="CK-L15"
            )
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {bad!r}")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointUnsafe | Unsupported | NotACheckpoint):
            raise
        raise CheckpointCorrupt(
            what,
            found=f"a damaged archive ({error})",
            expected="one that can be read",
            fix="Download the file again.",
            code="CK-L15",
        ) from None


def _refusal(
    file: IO[bytes], container: str, what: str, error: Exception
) -> CheckpointCorrupt | CheckpointUnsafe:
    named = [name for name in _globals(file, container) if not name.startswith(_SAFE)]
    if named:
        return CheckpointUnsafe(
            what,
            found=f"a pickle that calls {', '.join(sorted(set(named))[:3])}",
            expected="tensors and plain containers alone",
            fix=f"Nothing of it was run. {_CONVERT}",
            code="CK-L13",
        )
    if "nsupported" in str(error) or "weights_only" in str(error).lower():
        return CheckpointUnsafe(
            what,
            found="a pickle with instructions that weights do not need",
            expected="tensors and plain containers alone",
            fix=f"Nothing of it was run. {_CONVERT}",
            code="CK-L14",
        )
    return CheckpointCorrupt(
        what,
        found=f"a file that torch.load cannot read ({type(error).__name__})",
        expected="a file written by torch.save",
        fix="Download the file again.",
        code="CK-L01",
    )


def _globals(file: IO[bytes], container: str) -> list[str]:
    """Names that a pickle would import, read without running it; as many as can be told."""
    try:
        file.seek(0)
        if container == "zip":
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                data = archive.open(name).read(_SCANNED)
        else:
            data = file.read(_SCANNED)
    except (zipfile.BadZipFile, OSError, StopIteration, EOFError, ValueError):
        return []
    names: list[str] = []
    begin = 0
    for _ in range(5):  # before torch 1.6 a file was several pickles in a row
        texts: list[str] = []
        memo: dict[int, str] = {}
        try:
            for opcode, argument, position in pickletools.genops(data[begin:]):
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
                    names.append(".".join(texts[-2:]))
                elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT") and texts:
                    memo[len(memo) if argument is None else int(argument or 0)] = texts[-1]
                elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                    texts.append(memo.get(int(argument or 0), "?"))
                elif isinstance(argument, str):
                    texts.append(argument)
                if opcode.name == "STOP":
                    begin += (position or 0) + 1
        except Exception:  # a damaged pickle: what was told so far is all there is
            break
    return names
