"""Rows 25 to 29 of the fault table: whole files with the wrong weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from controlkit.checkpoints import load
from controlkit.checkpoints.save import _serialise
from controlkit.errors import (
    CheckpointCorrupt,
    ControlKitWarning,
    DtypeUnsupported,
    NonFinite,
    ParameterError,
    Unsupported,
)
from tests import tiny
from tests.checkpoints.fault_table import Maker, check, refuse
from tests.checkpoints.files import adapter, state, write

State = dict[str, Tensor]
BLOCK = "adapter.body.0.resnets.0.block1.weight"
BIAS = "adapter.conv_in.bias"


def stored(change: Callable[[State], State], make: Callable[[], State] = state) -> Maker:
    """A safetensors file of changed weights."""
    return lambda folder: packed(folder / "x.safetensors", change(make()))


def packed(path: Path, tensors: State) -> Path:
    return write(path, b"".join(map(bytes, _serialise(tensors))))


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


@contextmanager
def remarks(*, like: str) -> Iterator[None]:
    """Exactly one remark, of these words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(item.message) for item in caught if issubclass(item.category, ControlKitWarning)]
    assert len(texts) == 1, texts
    assert like in texts[0], texts


def of_shapes(shapes: dict[str, list[int]]) -> Maker:
    return stored(lambda _: {name: torch.zeros(shape) for name, shape in shapes.items()})


# L25
def _spoiled(value: float) -> Callable[[State], State]:
    def change(tensors: State) -> State:
        tensors[BLOCK][0, 0, :2, 0] = value
        tensors[BIAS][3] = value
        return tensors

    return change


for _value in (float("nan"), float("inf"), -float("inf")):
    refuse(
        25,
        str(_value),
        stored(_spoiled(_value)),
        NonFinite,
        "in 2 tensors",
        rf"'{BLOCK}' \(2\)",
        rf"'{BIAS}' \(1\)",
        "allow_nonfinite=True",
    )


@check(25)
def non_finite_weights_can_be_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(folder / "x.safetensors", _spoiled(float("nan"))(state()))
    with remarks(like="NaN or infinite values in 2 tensors"):
        module = load(path, allow_nonfinite=True)
    assert int(module.state_dict()[BLOCK].isnan().sum()) == 2
    assert load(packed(path, state()), allow_nonfinite=True).notes == ()


# L26
@check(26)
def untrained_output_convolutions_are_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny.controlnet()
    tensors = {
        name: torch.zeros_like(tensor) if name.startswith(("controlnet_down", "controlnet_mid")) else tensor
        for name, tensor in net.state_dict().items()
    }
    net.load_state_dict(tensors)
    with remarks(like="no effect"):
        module = load(net.save(folder / "x"))
    assert any("no effect" in note for note in module.notes)


# L27
def _pickled(dtype: torch.dtype) -> Maker:
    def make(folder: Path) -> Path:
        torch.save({**state(), BLOCK: state()[BLOCK].to(dtype)}, folder / "x.pth")
        return folder / "x.pth"

    return make


for _dtype in (torch.int8, torch.uint8, torch.complex128, torch.bool):
    _name = str(_dtype).removeprefix("torch.")
    refuse(27, f"{_name}_in_a_pickle", _pickled(_dtype), Unsupported, f"dtype {_name}", re.escape(BLOCK))
for _dtype in (torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64):
    _name = str(_dtype).removeprefix("torch.")
    refuse(
        27,
        _name,
        stored(replaced(BLOCK, lambda t, d=_dtype: t.to(d))),
        Unsupported,
        f"dtype {_name}",
        BLOCK.replace(".", r"\."),
    )


@check(27)
def float64_is_converted_with_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(folder / "x.safetensors", {name: tensor.double() for name, tensor in state().items()})
    with remarks(like="weights stored as float64 were converted to float32"):
        module = load(path)
    assert {part.dtype for part in module.parameters()} == {torch.float32}
    assert torch.equal(module.state_dict()[BLOCK], state()[BLOCK])


@check(27)
def other_tensors_of_torch_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = {**state(), BLOCK: state()[BLOCK].to_sparse()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = {**state(), BIAS: torch.quantize_per_tensor(state()[BIAS], 0.1, 0, torch.qint8)}
    marked = state()
    marked[BIAS].detach_ = 1  # type: ignore[assignment,method-assign]
    for tensors in (sparse, quantised, marked):
        torch.save(tensors, folder / "x.pth")
        with pytest.raises(Unsupported, match="quantised, sparse or of a class of its own") as caught:
            load(folder / "x.pth")
        assert caught.value.code == "CK-L27"


# L28
@check(28)
def what_a_device_cannot_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float8 becomes float16; bfloat16 where the device has none: with a note, or an error if asked for."""
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state().items()}
    with remarks(like="weights stored as float8_e4m3fn were converted to float16"):
        load(packed(folder / "x.safetensors", tensors))

    def without_bfloat16(dtype: torch.dtype, device: Any) -> bool:
        return dtype not in (torch.bfloat16, torch.float64)

    monkeypatch.setattr("controlkit.checkpoints.placing.can_hold", without_bfloat16)
    path = packed(folder / "x.safetensors", {name: tensor.bfloat16() for name, tensor in state().items()})
    with remarks(like="weights stored as bfloat16 were converted to float16, as cpu cannot hold them"):
        assert {part.dtype for part in load(path).parameters()} == {torch.float16}
    with pytest.raises(DtypeUnsupported, match=r"dtype bfloat16, which cpu cannot hold.*float32") as caught:
        load(path, dtype=torch.bfloat16)
    assert caught.value.code == "CK-L28"
    for device in ("meta", "nowhere", "cuda:77", 3.5):
        with pytest.raises(ParameterError, match="device"):
            load(path, device=device)  # type: ignore[arg-type]


# L29
def _flipped(folder: Path, bit: int) -> tuple[Path, str]:
    """A file with one bit flipped in a weight, and the digest of the whole one."""
    whole = load(adapter().save(folder / "whole"))
    content = bytearray((folder / "whole" / "diffusion_pytorch_model.safetensors").read_bytes())
    content[-8 + bit // 8] ^= 1 << bit % 8
    assert whole.digest is not None
    return write(folder / "x.safetensors", bytes(content)), whole.digest


@check(29)
def flipped_bits_are_found_by_the_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = _flipped(folder, 3)
    assert load(path).notes == ()
    for given in (digest, f"sha256:{digest.upper()}"):
        with pytest.raises(CheckpointCorrupt, match=rf"SHA-256 .*; needed {digest}") as caught:
            load(path, sha256=given)
        assert caught.value.code == "CK-L29"
        load(folder / "whole", sha256=given)
    torch.save(state(), folder / "x.pth")
    with pytest.raises(CheckpointCorrupt, match="needed"):
        load(folder / "x.pth", sha256=digest)
    for wrong in ("abc", "", 7, "g" * 64):
        with pytest.raises(ParameterError, match="sha256"):
            load(path, sha256=wrong)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="a state dict"):
        load(state(), sha256=digest)


@check(29)
def a_pickle_of_another_digest_is_not_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(), folder / "x.pth")
    monkeypatch.setattr(torch, "load", pytest.fail)
    for allowed in (True, False):
        with pytest.raises(CheckpointCorrupt, match="SHA-256"):
            load(folder / "x.pth", sha256="0" * 64, allow_pickle=allowed)


@check(29)
def outliers_and_odd_ranges_are_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "x.safetensors"
    tensors = state()
    tensors[BLOCK][0, 0, 0, 0] *= 2.0**20
    with remarks(like=f"'{BLOCK}' ("):
        load(packed(path, tensors))
    net = tiny.controlnet().half()
    whole = net.state_dict()
    assert load(net.save(folder / "good")).notes == ()
    swapped = {name: tensor.view(torch.bfloat16) for name, tensor in whole.items()}
    with remarks(like="may be damaged, or name the wrong dtype"):
        load(packed(path, swapped), config=net.config.to_dict())
    back = {name: tensor.bfloat16().view(torch.float16) for name, tensor in whole.items()}
    with remarks(like="may be damaged, or name the wrong dtype"):
        load(packed(path, back), config=net.config.to_dict())
