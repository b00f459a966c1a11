"""Tensors by name, whatever they are stored in: read the names and shapes first, the bytes when asked."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from controlkit.checkpoints.pickles import Survey, check_storage, digest_of, flatten, survey, unpickle
from controlkit.checkpoints.safetensors import DTYPES, Header, read_header, read_tensors
from controlkit.checkpoints.sniff import Format, open_regular, sniff
from controlkit.errors import CheckpointCorrupt, CheckpointUnsafe, ShardError, StateError

_PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")


class Weights(ABC):
    """Named tensors that have not all been read yet.

    Attributes:
        shapes: By name.
        dtypes: By name.
        notes: What was unusual about the file.
        metadata: Texts that came with the tensors.
        digest: SHA-256 of the file, known after `read` is exhausted; None where there is no file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    notes: list[str]
    metadata: Mapping[str, str]
    digest: str | None

    @abstractmethod
    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the wanted tensors, in any order, each with memory that nobody else has."""


class InMemory(Weights):
    """Tensors that are there already: somebody's own, or unpickled with their owner's leave.

    Each is copied, as it may share its memory.
    """

    def __init__(self, saved: Mapping[Any, Any], what: str, digest: str | None = None) -> None:
        flat = flatten(saved, what, Tensor)
        self._tensors, self.notes = flat.tensors, flat.notes
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}
        self.metadata = {}
        self.digest = digest

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name in wanted:
            yield name, _own(self._tensors[name].detach())


class PickleFiles(Weights):
    """What `torch.save` wrote, surveyed at once and unpickled when the tensors are asked for."""

    def __init__(self, files: Sequence[tuple[str, IO[bytes], int, str]], sha256: str | None = None) -> None:
        self._files: list[tuple[str, IO[bytes], Survey]] = []
        self._expected = sha256
        self._origin: dict[str, int] = {}
        self.shapes, self.dtypes, self.metadata, self.notes = {}, {}, {}, []
        self.digest = None
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, torch.dtype] = {}
        for number, (what, file, size, container) in enumerate(files):
            flat = survey(file, size, container, what)
            self._files.append((what, file, flat))
            for name, tensor in flat.tensors.items():
                if name in shapes:
                    raise _twice(what, name)
                shapes[name], dtypes[name], self._origin[name] = tensor.shape, tensor.dtype, number
            self.notes += flat.notes
        self.shapes, self.dtypes = shapes, dtypes

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        digests: list[str] = []
        for number, (what, file, told) in enumerate(self._files):
            checked: set[str] = set()
            digests.append(digest_of(file))
            check_digest(digests[-1], self._expected if len(self._files) == 1 else None, what)
            tensors = flatten(unpickle(file, what), what, Tensor).tensors
            for name in (name for name in wanted if self._origin.get(name) == number):
                tensor = tensors.pop(name, None)
                if tensor is None or (tuple(tensor.shape), tensor.dtype) != (
                    self.shapes[name],
                    self.dtypes[name],
                ):
                    raise CheckpointUnsafe(
                        what,
                        found=f"{name!r:.100}, which reads as two things",
                        expected="one reading of the file",
                        fix="Ask for a safetensors file.",
                        code="CK-L15",
                    )
                if (key := told.tensors[name].storage.key) not in checked:
                    check_storage(tensor, told.tensors[name], told.checksum, what)
                    checked.add(key)
                yield name, _own(tensor.detach())
        self.digest = digests[0] if len(digests) == 1 else _joined(digests)


class SafetensorsFiles(Weights):
    """One safetensors file, or several that belong together, held open from the check to the reading."""

    def __init__(self, files: list[tuple[str, IO[bytes], int]]) -> None:
        self._files: list[tuple[str, IO[bytes], Header]] = []
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, torch.dtype] = {}
        metadata: dict[str, str] = {}
        for what, file, size in files:
            header = read_header(file, size, what)
            for name, entry in header.entries.items():
                if name in shapes:
                    raise _twice(what, name)
                shapes[name], dtypes[name] = entry.shape, entry.dtype
            metadata |= header.metadata
            self._files.append((what, file, header))
        self.shapes, self.dtypes, self.metadata = shapes, dtypes, metadata
        self.notes, self.digest = [], None

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        digest = hashlib.sha256()
        for what, file, header in self._files:
            file.seek(len(header.raw))
            yield from read_tensors(file, header, wanted, what, digest)
        self.digest = digest.hexdigest()


class HeaderOnly(Weights):
    """Names and shapes of a file that is elsewhere."""

    def __init__(self, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.shapes = {name: shape for name, (_, shape) in tensors.items()}
        self.dtypes = {name: DTYPES.get(dtype, torch.uint8) for name, (dtype, _) in tensors.items()}
        self.metadata, self.notes, self.digest = {}, [], None

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        raise StateError("weights", found="the header alone", expected="the file", fix="Open it in full.")


def open_weights(
    paths: list[Path], stack: ExitStack, *, allow_pickle: bool, sha256: str | None = None
) -> Weights:
    """Open the weight files of one checkpoint.

    Args:
        paths: One file, or all shards.
        stack: Closes the files.
        allow_pickle: See `unpickle`.
        sha256: What the file must have; a pickle is not unpickled unless it does.

    Raises:
        CheckpointError: Whatever is wrong with them; see `sniff`, `read_header` and `survey`.
    """
    opened: list[tuple[str, IO[bytes], int, Format]] = []
    for path in paths:
        file, size = open_regular(path)
        stack.enter_context(file)
        opened.append((str(path), file, size, sniff(file, size, str(path))))
    notes = [
        note for path, (*_, found) in zip(paths, opened, strict=True) for note in _name_notes(path, found)
    ]
    formats = {"pickle" if found == "zip" else found for *_, found in opened}
    if len(formats) > 1:
        raise ShardError(
            str(paths[0].parent),
            found="safetensors and pickles as shards of one checkpoint",
            expected="shards of one format",
            fix="Download all shards again.",
        )
    if formats == {"safetensors"}:
        weights: Weights = SafetensorsFiles([(what, file, size) for what, file, size, _ in opened])
    else:
        for path in paths:
            _check_pickle_name(path, allow_pickle)
        weights = _obeyed(opened, sha256, allow_pickle) if allow_pickle else PickleFiles(opened, sha256)
    weights.notes.extend(notes)
    return weights


def check_digest(found: str, expected: str | None, what: str) -> None:
    """Compare a file's SHA-256 with what it should be; None: nobody knows.

    Raises:
        CheckpointCorrupt: It differs.
    """
    if expected is not None and found != expected:
        raise CheckpointCorrupt(
            what,
            found=f"SHA-256 {found}",
            expected=expected,
            fix="It is not the file that was meant. Download it again, or correct the digest.",
            code="CK-L29",
        )


def _obeyed(
    opened: list[tuple[str, IO[bytes], int, Format]], sha256: str | None, allow_pickle: bool
) -> Weights:
    """Pickles whose owner has allowed them to run."""
    merged: dict[Any, Any] = {}
    digests: list[str] = []
    for what, file, _, _ in opened:
        digests.append(digest_of(file))
        check_digest(digests[-1], sha256 if len(opened) == 1 else None, what)
        merged |= unpickle(file, what, allow_pickle=allow_pickle)
    return InMemory(merged, opened[0][0], digests[0] if len(digests) == 1 else _joined(digests))


def _check_pickle_name(path: Path, allow_pickle: bool) -> None:
    if path.suffix.lower() not in _PICKLE_SUFFIXES and not allow_pickle:
        raise CheckpointUnsafe(
            str(path),
            found=f"a pickle under a name that ends in {path.suffix!r:.40}",
            expected="safetensors",
            fix="The name is wrong. If you trust where it comes from, rename it to end in .pth.",
            code="CK-L12",
        )


def _name_notes(path: Path, found: str) -> list[str]:
    suffix = path.suffix.lower()
    if found == "safetensors" and suffix in _PICKLE_SUFFIXES:
        return [f"{path.name} is named like a pickle and holds safetensors; it was read as what it holds"]
    if found != "safetensors" and suffix not in _PICKLE_SUFFIXES:
        return [f"{path.name} is not named like a pickle and holds one; it was unpickled, as it was allowed"]
    return []


def _own(tensor: Tensor) -> Tensor:
    """A copy with memory that nobody else has, of a tensor that has memory."""
    is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    return tensor.clone(memory_format=torch.contiguous_format) if is_plain else tensor


def _joined(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _twice(what: str, name: str) -> ShardError:
    return ShardError(
        what,
        found=f"{name!r:.100}, which is in another shard too",
        expected="each tensor once",
        fix="Download all shards again.",
    )
