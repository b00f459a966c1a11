"""Tensors by name, whatever they are stored in: read the names and shapes first, the bytes when asked."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from controlkit.checkpoints.pickles import flatten, read_pickle
from controlkit.checkpoints.safetensors import DTYPES, Header, read_header, read_tensors
from controlkit.checkpoints.sniff import open_regular, sniff
from controlkit.errors import CheckpointCorrupt, CheckpointUnsafe, StateError

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
    """Tensors that are there already: somebody's own, or unpickled ones, which have a digest.

    Each is copied, as it may share its memory; unpickled ones are given up one by one on the way.
    """

    def __init__(self, saved: Mapping[Any, Any], what: str, digest: str | None = None) -> None:
        self._tensors, self.notes = flatten(saved, what)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}
        self.metadata = {}
        self.digest = digest

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name in wanted:
            tensor = self._tensors[name] if self.digest is None else self._tensors.pop(name)
            is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
            yield name, tensor.clone(memory_format=torch.contiguous_format) if is_plain else tensor


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
                    raise CheckpointCorrupt(
                        what,
                        found=f"{name!r}, which is in another shard too",
                        expected="each tensor once",
                        fix="Download all shards again.",
                        code="CK-L33",
                    )
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


def open_weights(paths: list[Path], stack: ExitStack, *, allow_pickle: bool) -> Weights:
    """Open the weight files of one checkpoint.

    Args:
        paths: One file, or all shards.
        stack: Closes the files.
        allow_pickle: See `read_pickle`.

    Raises:
        CheckpointError: Whatever is wrong with them; see `sniff`, `read_header` and `read_pickle`.
    """
    opened: list[tuple[str, IO[bytes], int]] = []
    formats: list[str] = []
    for path in paths:
        file, size = open_regular(path)
        stack.enter_context(file)
        opened.append((str(path), file, size))
        formats.append(sniff(file, size, str(path)))
    notes = [note for path, found in zip(paths, formats, strict=True) for note in _name_notes(path, found)]
    if all(found == "safetensors" for found in formats):
        weights: Weights = SafetensorsFiles(opened)
    else:
        merged: dict[str, Any] = {}
        digests: list[str] = []
        for path, (what, file, _), found in zip(paths, opened, formats, strict=True):
            if found == "safetensors":
                raise CheckpointCorrupt(
                    what, found="safetensors among pickles", expected="shards of one format"
                )
            if path.suffix.lower() not in _PICKLE_SUFFIXES and not allow_pickle:
                raise CheckpointUnsafe(
                    what,
                    found=f"a pickle under a name that ends in {path.suffix!r}",
                    expected="safetensors",
                    fix="If you trust where it comes from, rename it to end in .pth.",
                    code="CK-L12",
                )
            saved, digest = read_pickle(file, found, what, allow_pickle=allow_pickle)
            merged |= saved
            digests.append(digest)
        joined = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        weights = InMemory(merged, str(paths[0]), joined)
    weights.notes.extend(notes)
    return weights


def _name_notes(path: Path, found: str) -> list[str]:
    suffix = path.suffix.lower()
    if found == "safetensors" and suffix in _PICKLE_SUFFIXES:
        return [f"{path.name} is named like a pickle and holds safetensors; it was read as what it holds"]
    return []
