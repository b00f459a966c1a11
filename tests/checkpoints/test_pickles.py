"""Pickles: weights are read, nothing is ever run, and what was refused is said in our words."""

from __future__ import annotations

import ast
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import controlkit
from controlkit.checkpoints import inspect, load
from controlkit.checkpoints.pickles import read_pickle
from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointUnsafe,
    ControlKitError,
    ControlKitWarning,
    NotACheckpoint,
    Unsupported,
)
from tests.checkpoints.files import adapter, state, write


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.marker,)


class Nested:
    """The payload as the state of something harmless, by another function that imports."""

    def __init__(self, marker: Path) -> None:
        self.inner = Payload(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').mkdir({self.inner.marker!r})",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("payload", [Payload, Nested])
@pytest.mark.parametrize("wrap", ["raw", "in_dict", "torch", "legacy"])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.CKPT", "x"])
def test_a_payload_is_named_and_never_run(
    name: str, wrap: str, payload: type[Any], protocol: int, tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / name
    content: Any = payload(marker)
    if wrap != "raw":
        content = {**state(), "x": content}
    if wrap in ("raw", "in_dict"):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        is_zip = wrap == "torch"
        torch.save(content, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=max(2, protocol))
    with pytest.raises(ControlKitError) as caught:
        load(path)
    assert not marker.exists()
    assert isinstance(caught.value, CheckpointUnsafe)
    if name.lower().endswith((".pth", ".ckpt")):
        assert "mkdir" in str(caught.value) or "eval" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["x.pth", "x.bin", "x.pt", "x.ckpt"])
def test_weights_in_a_pickle_are_read(zipped: bool, name: str, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    module = load(tmp_path / name)
    assert all(torch.equal(state()[key], tensor) for key, tensor in module.state_dict().items())
    assert inspect(tmp_path / name).kind == "t2i-adapter"
    assert module.digest is not None
    assert len(module.digest) == 64


def test_tensors_that_share_memory_are_parted(tmp_path: Path) -> None:
    tensors = state()
    shared = torch.zeros(1).expand(8)
    tensors["adapter.conv_in.bias"] = tensors["adapter.body.0.resnets.0.block1.bias"] = shared
    torch.save(tensors, tmp_path / "x.pth")
    loaded = load(tmp_path / "x.pth").state_dict()
    loaded["adapter.conv_in.bias"].fill_(1.0)
    assert not loaded["adapter.body.0.resnets.0.block1.bias"].any()


def test_safetensors_under_a_pickle_name_is_read_with_a_remark(tmp_path: Path) -> None:
    path = adapter().save(tmp_path) / "diffusion_pytorch_model.safetensors"
    with pytest.warns(ControlKitWarning, match="holds safetensors"):
        load(path.rename(tmp_path / "x.ckpt"))


@pytest.mark.parametrize("content", [[1], None, torch.zeros(2), "text", 7])
def test_something_else_that_was_saved_is_called_what_it_is(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(NotACheckpoint, match=type(content).__name__):
        load(tmp_path / "x.pth")


def _rezip(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> Path:
    out = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in old.infolist():
            change(new, entry, old.read(entry))
    return out


def _compress(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename, data, zipfile.ZIP_DEFLATED)


def _twice(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    for _ in range(2 if entry.filename.endswith("data.pkl") else 1):
        new.writestr(entry.filename, data)


def _two_pickles(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename, data)
    if entry.filename.endswith("data.pkl"):
        new.writestr("other/data.pkl", data)


def _no_pickle(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    if not entry.filename.endswith("data.pkl"):
        new.writestr(entry.filename, data)


def _script(new: zipfile.ZipFile, entry: zipfile.ZipInfo, data: bytes) -> None:
    new.writestr(entry.filename.replace("byteorder", "constants.pkl"), data)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_compress, CheckpointUnsafe),
        (_twice, CheckpointUnsafe),
        (_two_pickles, CheckpointUnsafe),
        (_no_pickle, NotACheckpoint),
        (_script, Unsupported),
    ],
)
def test_an_odd_archive_is_refused(change: Any, error: type[Exception], tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.pth")
    with pytest.raises(error):
        load(_rezip(tmp_path / "x.pth", change))


def test_a_wrong_checksum_or_name_is_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.pth")
    content = bytearray((tmp_path / "x.pth").read_bytes())
    middle = content.index(b"data/0") + 200
    content[middle] ^= 0xFF
    with pytest.raises(CheckpointCorrupt):
        load(write(tmp_path / "crc.pth", bytes(content)))
    renamed = (tmp_path / "x.pth").read_bytes().replace(b"x/data.pkl", b"x/atad.pkl", 1)
    with pytest.raises(CheckpointError):
        load(write(tmp_path / "renamed.pth", renamed))


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 24))
    with pytest.raises(CheckpointUnsafe, match="compressed"):
        load(tmp_path / "bomb.pth")


def test_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointUnsafe, match=r"2\.10"):
        load(tmp_path / "x.pth")


def test_code_is_unpickled_only_when_asked(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({**state(), "x": Payload(marker)}, tmp_path / "x.pth")
    with pytest.warns(ControlKitWarning, match="not tensors"):
        load(tmp_path / "x.pth", allow_pickle=True)
    assert marker.exists()


def test_no_other_door_to_pickle_in_the_package() -> None:
    """Every call of an unpickler in the package; one of them, and it takes its leave from the caller."""
    found: list[str] = []
    root = Path(controlkit.__file__).parent
    for path in sorted(
        {
            file.resolve()
            for folder in (root, root / "adapters", root / "preprocessors")
            for file in folder.rglob("*.py")
        }
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if called in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"):
                    found.append(f"{path.name}: {called}")
                if called == "torch.load" and keywords.get("weights_only") != "True":
                    found.append(f"{path.name}: {called}({keywords.get('weights_only')})")
    assert found == ["pickles.py: torch.load(not allow_pickle)"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_a_pickle_is_an_error_or_harmless(data: st.DataObject) -> None:
    zipped = data.draw(st.booleans())
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, buffer, _use_new_zipfile_serialization=zipped)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            saved, _ = read_pickle(io.BytesIO(bytes(content)), "zip" if zipped else "pickle", "x")
        except ControlKitError as refusal:
            text = str(refusal)
        else:
            text = str(type(saved))
    assert "weights_only" not in text
