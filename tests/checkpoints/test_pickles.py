"""Pickles: weights are read, nothing is ever run, and what was refused is said in our words."""

from __future__ import annotations

import ast
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import controlkit
from controlkit.checkpoints import inspect, load
from controlkit.checkpoints.pickles import survey, unpickle
from controlkit.errors import (
    CheckpointUnsafe,
    ControlKitError,
    ControlKitWarning,
)
from tests.checkpoints.files import state


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.marker,)


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


ROOT = Path(controlkit.__file__).parent
RUNS_CODE = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
CALLS = ("torch.jit.load", "torch.hub.load", "pandas.read_pickle", "eval", "exec", "__import__")
TRUSTING = ("add_safe_globals", "safe_globals", "_add_safe_globals", "trust_remote_code")


def sources() -> dict[str, ast.Module]:
    """Every file of the package, the adapters, the preprocessors, and what is shipped beside them."""
    folders = (
        ROOT,
        ROOT / "adapters",
        ROOT / "preprocessors",
        *(ROOT.parent / n for n in ("examples", "scripts", "tools")),
    )
    files = {file.resolve() for folder in folders for file in folder.rglob("*.py")}
    assert len(files) > 80
    return {file.name: ast.parse(file.read_text()) for file in sorted(files)}


def test_no_other_door_to_pickle_in_the_package() -> None:
    """No unpickler is imported, no other loader called, and nobody is put on torch's list of the trusted."""
    found: list[str] = []
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [
                    f"{name}: {part.name}" for part in node.names if part.name.split(".")[0] in RUNS_CODE
                ]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_CODE:
                found.append(f"{name}: {node.module}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
                found.append(f"{name}: {ast.unparse(node.func)}")
            elif isinstance(node, ast.Attribute) and node.attr in (*TRUSTING, "Unpickler"):
                found.append(f"{name}: {node.attr}")
            elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "pickle_module"):
                found.append(f"{name}: {node.arg}")
    assert found == []


def test_torch_unpickles_weights_only() -> None:
    """Every `torch.load` says ``weights_only=True``, except under ``if allow_pickle``; none is a retry."""
    exceptions: list[tuple[str, str]] = []
    for name, tree in sources().items():
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "torch.load":
                continue
            above: list[ast.AST] = [node]
            while above[-1] in parents:
                above.append(parents[above[-1]])
            assert not any(isinstance(part, ast.ExceptHandler) for part in above), name
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if words.get("weights_only") != "True":
                branch = next(part for part in above if isinstance(part, ast.If | ast.Module))
                assert isinstance(branch, ast.If), name
                assert any(part in branch.body for part in above), name
                exceptions.append((name, ast.unparse(branch.test)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) == "torch.load":
                assert isinstance(parents[node], ast.Call), f"{name} passes torch.load on"
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert isinstance(node.value, ast.Constant), f"{name} computes weights_only"
    assert exceptions == [("pickles.py", "allow_pickle")]


def test_nobody_allows_pickles_of_their_own_accord() -> None:
    """``allow_pickle=True`` is nowhere in the package: it comes from the caller, and is off by default."""
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) in ("allow_pickle", "False"), name
            elif isinstance(node, ast.FunctionDef):
                options = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                for option, default in options:
                    if option.arg == "allow_pickle" and default is not None:
                        assert ast.unparse(default) == "False", name


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
            survey(io.BytesIO(bytes(content)), len(content), "zip" if zipped else "pickle", "x")
            saved = unpickle(io.BytesIO(bytes(content)), "x")
        except ControlKitError as refusal:
            text = str(refusal)
        else:
            text = str(type(saved))
    assert "weights_only" not in text
