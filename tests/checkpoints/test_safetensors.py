"""Safetensors as others write and read it, and what any change of a header leads to.

The faults that a file can have, one by one, are in `faults_files.py`.
"""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlkit.checkpoints import load
from controlkit.errors import ControlKitError, ControlKitWarning
from tests.checkpoints.files import adapter, header, state, write


def test_tensors_without_elements_may_share_an_offset() -> None:
    from controlkit.checkpoints.safetensors import parse_header

    listed = header({"a": ("F32", [0], [0, 0]), "b": ("F32", [2, 0], [0, 0]), "c": ("F32", [1], [0, 4])})
    assert set(parse_header(json.dumps(listed).encode(), 4, "x").entries) == {"a", "b", "c"}


def test_reads_what_the_reference_writes_and_the_reverse(tmp_path: Path) -> None:
    reference: Any = import_module("safetensors.torch")
    tensors = state()
    reference.save_file(tensors, tmp_path / "x.safetensors", metadata={"condition": "canny"})
    module = load(tmp_path / "x.safetensors")
    assert module.condition == "canny"
    assert all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())
    again = reference.load_file(module.save(tmp_path) / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in again.items())


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_change_of_the_header_is_an_error_or_harmless(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    source = folder / "whole"
    if not source.exists():
        adapter().save(source)
    whole = (source / "diffusion_pytorch_model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    position = data.draw(st.integers(0, length + 7))
    count = data.draw(st.integers(0, 6))
    part = data.draw(
        st.binary(max_size=6) | st.sampled_from([b'"', b"{", b"}", b"[1", b"9", b",", b"-", b"\\u0000"])
    )
    mutated = whole[:position] + part + whole[position + count :]
    path = write(folder / "mutated.safetensors", mutated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ControlKitWarning)
        try:
            module = load(path)
        except ControlKitError as error:
            str(error).encode()
            return
    # What still loads is the same network: only remarks, or tensors of one shape under each other's name.
    assert {tensor.shape for tensor in module.state_dict().values()} == {t.shape for t in state().values()}
    assert all(torch.isfinite(tensor).all() for tensor in module.parameters())
