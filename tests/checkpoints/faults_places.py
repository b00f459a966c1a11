"""Rows 33 to 35 of the fault table: shards, links, devices, files that change or go away."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from controlkit.checkpoints import load
from controlkit.checkpoints.save import _serialise
from controlkit.checkpoints.sniff import open_regular
from controlkit.errors import (
    CheckpointCorrupt,
    FileError,
    ShardError,
)
from tests.checkpoints.fault_table import Maker, check, refuse
from tests.checkpoints.files import adapter, header, pack, state, write

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def sharded(folder: Path) -> dict[str, str]:
    """Two shards and their index; gives the index's map."""
    adapter().save(folder)
    (folder / WEIGHTS).unlink()
    tensors, listed = state(), {}
    for number, part in enumerate((list(tensors)[:5], list(tensors)[5:]), start=1):
        name = f"{STEM}-0000{number}-of-00002.safetensors"
        write(folder / name, b"".join(map(bytes, _serialise({key: tensors[key] for key in part}))))
        listed |= dict.fromkeys(part, name)
    write(folder / INDEX, json.dumps({"weight_map": listed}).encode())
    return listed


def shards(change: Callable[[Path, dict[str, str]], None]) -> Maker:
    """A sharded checkpoint that was changed; the index's map is written after the change."""

    def make(folder: Path) -> Path:
        place = folder / "x"
        listed = sharded(place)
        write(folder / "secret.safetensors", pack(header({}), b""))
        change(place, listed)
        write(place / INDEX, json.dumps({"weight_map": listed}).encode())
        return place

    return make


def _points_to(shard: str) -> Maker:
    return shards(lambda place, listed: listed.update({next(iter(listed)): shard}))


def _link(place: Path, listed: dict[str, str]) -> None:
    (place / "link.safetensors").symlink_to(place.parent / "secret.safetensors")
    listed[next(iter(listed))] = "link.safetensors"


def _linked_shard(place: Path, listed: dict[str, str]) -> None:
    shard = place / next(iter(listed.values()))
    shard.rename(place.parent / "moved.safetensors")
    shard.symlink_to(place.parent / "moved.safetensors")


def _drop(place: Path, listed: dict[str, str]) -> None:
    (place / next(iter(listed.values()))).unlink()


def _add(place: Path, listed: dict[str, str]) -> None:
    write(place / f"{STEM}-00003-of-00003.safetensors", b"")


def _double(place: Path, listed: dict[str, str]) -> None:
    first, second = sorted(set(listed.values()))
    write(place / second, (place / first).read_bytes())


# L33
SECOND = f"{STEM}-00002-of-00002"
for _name, _shard in {
    "traversal": "../secret.safetensors",
    "absolute": "/etc/passwd",
    "dots": "..",
    "detour": "a/../../b",
    "empty": "",
    "zero": "zero\0",
    "windows": "..\\secret.safetensors",
    "drive": "C:secret",
}.items():
    refuse(33, _name, _points_to(_shard), ShardError, "which lies outside", "Do not use", header=True)
refuse(33, "link", shards(_link), ShardError, "'link.safetensors', which lies outside", header=True)
refuse(33, "linked_shard", shards(_linked_shard), ShardError, "00001-of-00002.*lies outside", header=True)
refuse(33, "missing", shards(_drop), ShardError, "no shard '.*-00001-of-00002.*all 2 shards", header=True)
refuse(33, "unknown", _points_to("none.safetensors"), ShardError, "no shard 'none.safetensors'", header=True)
refuse(
    33,
    "extra",
    shards(_add),
    ShardError,
    "00003-of-00003.*does not list",
    header=True,
)
refuse(33, "tensor_in_two", shards(_double), ShardError, "another shard", header=True)
refuse(
    33,
    "tensor_in_none",
    shards(lambda _, listed: listed.update(surplus=f"{SECOND}.safetensors")),
    ShardError,
    f"'surplus', which is only in the index.*{SECOND}",
    header=True,
)
refuse(
    33,
    "tensor_unlisted",
    shards(lambda _, listed: listed.pop("adapter.conv_in.bias") and None),
    ShardError,
    "'adapter.conv_in.bias', which is only in the shards",
    header=True,
)


@check(33)
def nothing_outside_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = os.open

    def recorded(name: Any, *args: Any, **options: Any) -> int:
        opened.append(os.path.realpath(name))
        return real(name, *args, **options)

    monkeypatch.setattr(os, "open", recorded)
    for number, make in enumerate(
        (_points_to("../secret.safetensors"), shards(_link), shards(_linked_shard))
    ):
        (place := folder / str(number)).mkdir()
        with pytest.raises(ShardError, match="lies outside"):
            load(make(place))
    assert any(name.endswith(INDEX) for name in opened)
    assert not [name for name in opened if name.endswith(("secret.safetensors", "moved.safetensors"))]


@check(33)
def shards_of_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, listed = state(), {}
    for number, part in enumerate((list(tensors)[:5], list(tensors)[5:]), start=1):
        name = f"{STEM}-0000{number}-of-00002.bin"
        torch.save({key: tensors[key] for key in part}, folder / name)
        listed |= dict.fromkeys(part, name)
    write(folder / f"{STEM}.bin.index.json", json.dumps({"weight_map": listed}).encode())
    module = load(folder)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())
    torch.save(tensors, folder / f"{STEM}-00002-of-00002.bin")
    with pytest.raises(ShardError, match="another shard"):
        load(folder)
    write(folder / f"{STEM}-00002-of-00002.bin", (adapter().save(folder / "m") / WEIGHTS).read_bytes())
    with pytest.raises(ShardError, match="safetensors and pickles"):
        load(folder)


# L34
@check(34)
def a_file_that_is_replaced_is_read_as_it_was_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path names another file by the time the bytes are read; they come from the one that was open."""
    from controlkit.checkpoints import load as module_of_load

    recognise = sys.modules[module_of_load.__module__].recognise  # type: ignore[attr-defined]
    path = folder / "x.safetensors"
    for zipped in (None, True, False):
        if zipped is None:
            write(path, (adapter().save(folder / "m") / WEIGHTS).read_bytes())
        else:
            path = folder / "x.pth"
            torch.save(state(), path, _use_new_zipfile_serialization=zipped)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()

        def replace(*args: Any, path: Path = path, **options: Any) -> Any:
            write(folder / "other", b"something else")
            os.replace(folder / "other", path)
            return recognise(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[module_of_load.__module__], "recognise", replace)
            module = load(path)
        assert module.digest == digest
        assert all(torch.equal(state()[name], tensor) for name, tensor in module.state_dict().items())


@check(34)
def a_pickle_that_changes_in_place_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(), folder / "x.pth")
    read = torch.load

    def late(*args: Any, **options: Any) -> Any:
        result = read(*args, **options)
        os.utime(folder / "x.pth", ns=(1, 1))
        return result

    monkeypatch.setattr(torch, "load", late)
    with pytest.raises(CheckpointCorrupt, match="changed while it was read") as caught:
        load(folder / "x.pth")
    assert caught.value.code == "CK-L34"


@check(34)
def a_file_that_is_cut_after_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header was whole; its end is gone by the time its weights are read."""
    module = sys.modules[load.__module__]
    path = adapter().save(folder / "m") / WEIGHTS
    recognise = module.recognise  # type: ignore[attr-defined]

    def cut(*args: Any, **options: Any) -> Any:
        os.truncate(path, path.stat().st_size - 100)
        return recognise(*args, **options)

    monkeypatch.setattr(module, "recognise", cut)
    with pytest.raises(CheckpointCorrupt, match=r"an end of the file within 'adapter.*bytes more") as caught:
        load(path)
    assert caught.value.code == "CK-L01"


# L35
def _socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(folder):
        end.bind("x.safetensors")
    return str(folder / "x.safetensors")


def _fifo_as_index(folder: Path) -> Path:
    os.mkfifo(folder / INDEX)
    return folder


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.safetensors")
    return folder / "x.safetensors"


def _dangling(folder: Path) -> Path:
    (folder / "x.safetensors").symlink_to(folder / "nowhere")
    return folder / "x.safetensors"


def _loop(folder: Path) -> Path:
    (folder / "x.safetensors").symlink_to(folder / "x.safetensors")
    return folder / "x.safetensors"


def _folder(folder: Path) -> Path:
    (folder / "x.safetensors").mkdir()
    return folder / "x.safetensors"


refuse(35, "fifo", _fifo, FileError, "a pipe, socket or device; needed a regular file", header=True)
refuse(35, "fifo_as_index", _fifo_as_index, FileError, "a pipe, socket or device", header=True)
refuse(35, "socket", _socket, FileError, "no such device|a pipe, socket", header=True)
refuse(35, "null", lambda folder: Path("/dev/null"), FileError, "a pipe, socket or device", header=True)
refuse(35, "zero", lambda folder: Path("/dev/zero"), FileError, "a pipe, socket or device", header=True)
refuse(35, "dangling", _dangling, FileError, "no such file", header=True)
refuse(35, "loop", _loop, FileError, "symbolic links", header=True)
refuse(35, "folder", _folder, FileError, "no weight file", header=True)
refuse(35, "missing", lambda folder: folder / "x.pth", FileError, "no such file or folder", header=True)
refuse(35, "zero_byte", lambda folder: str(folder / "x") + "\0.pth", FileError, "no such file", header=True)
refuse(35, "long_name", lambda folder: "x" * 5000 + ".pth", FileError, "no such file|too long", header=True)


@check(35)
def a_file_without_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = adapter().save(folder / "m") / WEIGHTS
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything
        opened = os.open

        def refuse_it(name: Any, *args: Any, **options: Any) -> int:
            if os.fspath(name) == str(path):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(name, *args, **options)

        monkeypatch.setattr(os, "open", refuse_it)
    with pytest.raises(FileError, match=r"permission denied.*permissions") as caught:
        load(path)
    assert caught.value.code == "CK-L35"
    assert isinstance(caught.value.__cause__, PermissionError)


class _Dropping:
    """A file on a network that goes away after so many bytes."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._left = file, most

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise OSError(errno.EIO, "Input/output error")

    def read(self, count: int = -1) -> bytes:
        part = self._file.read(count)
        self._spend(len(part))
        return part

    def readinto(self, view: Any) -> int:
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._spend(count)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Dropping:
        return self

    def __exit__(self, *details: Any) -> None:
        self._file.close()


@check(35)
def a_disk_that_goes_away_while_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [adapter().save(folder / "m") / WEIGHTS]
    for zipped in (True, False):
        paths.append(folder / f"{zipped}.pth")
        torch.save(state(), paths[-1], _use_new_zipfile_serialization=zipped)
    for path in paths:
        size = path.stat().st_size
        for most in (2, 500, 3000, size // 2, size + 1000):

            def opened(place: Path, most: int = most) -> tuple[Any, int]:
                file, length = open_regular(place)
                return _Dropping(file, most), length

            with monkeypatch.context() as patch:
                patch.setattr("controlkit.checkpoints.weights.open_regular", opened)
                with pytest.raises(FileError, match="input/output error") as caught:
                    load(path)
            assert caught.value.code == "CK-L35"
