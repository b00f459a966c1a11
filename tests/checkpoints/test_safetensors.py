"""Every fault a safetensors header can have is refused by its name, at once and before anything is read."""

from __future__ import annotations

import json
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlkit.checkpoints import inspect, load
from controlkit.errors import CheckpointCorrupt, ControlKitError, ControlKitWarning, Unsupported
from tests.checkpoints.files import adapter, header, pack, state, write

A, B = ("F32", [2], [0, 8]), ("F32", [2], [8, 16])
TWO = {"a": A, "b": B}
DATA = bytes(16)
GOOD = pack(header(TWO), DATA)

FAULTS: dict[str, tuple[bytes, type[Exception], str]] = {
    "empty": (b"", CheckpointCorrupt, "empty"),
    "four_bytes": (b"\x10\0\0\0", CheckpointCorrupt, "4 bytes"),
    "cut_in_header": (GOOD[:40], CheckpointCorrupt, "cut off"),
    "cut_in_data": (GOOD[:-1], CheckpointCorrupt, "cut off"),
    "length_2_62": (pack(header(TWO), DATA, length=1 << 62), CheckpointCorrupt, "for the header alone"),
    "length_too_long": (pack(header(TWO), DATA, length=10_000), CheckpointCorrupt, "cut off"),
    "length_too_short": (pack(header(TWO), DATA, length=10), CheckpointCorrupt, "not JSON"),
    "header_9_mb": (pack(b"{" + b" " * (9 << 20) + b"}"), CheckpointCorrupt, "at most"),
    "not_utf8": (pack(b'{"\xff": 1}'), CheckpointCorrupt, "byte 2"),
    "bad_json": (pack(b'{"a": }'), CheckpointCorrupt, "char 6"),
    "nan_json": (pack(b'{"a": NaN}'), CheckpointCorrupt, "NaN"),
    "deep_json": (pack(b'{"a":' + b"[" * 100_000), CheckpointCorrupt, "not JSON"),
    "huge_number": (pack(b'{"a":' + b"9" * 10_000 + b"}"), CheckpointCorrupt, "not JSON"),
    "duplicate": (
        pack(
            json.dumps(header({"a": A})).encode()[:-1] + b"," + json.dumps(header({"a": B})).encode()[1:],
            DATA,
        ),
        CheckpointCorrupt,
        "'a' twice",
    ),
    "duplicate_inside": (
        pack(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        CheckpointCorrupt,
        "twice",
    ),
    "overlap": (
        pack(header({"a": A, "b": ("F32", [2], [4, 12])}), bytes(12)),
        CheckpointCorrupt,
        "'b'.*overlaps 'a'",
    ),
    "hole": (
        pack(header({"a": A, "b": ("F32", [2], [12, 20])}), bytes(20)),
        CheckpointCorrupt,
        "4 bytes unused",
    ),
    "hole_at_start": (pack(header({"a": ("F32", [2], [8, 16])}), DATA), CheckpointCorrupt, "unused"),
    "descending": (pack(header({"a": ("F32", [2], [8, 0])}), bytes(8)), CheckpointCorrupt, "-8 bytes"),
    "negative": (pack(header({"a": ("F32", [2], [-8, 0])}), bytes(8)), CheckpointCorrupt, "natural"),
    "negative_shape": (pack(header({"a": ("F32", [-2], [0, 8])}), bytes(8)), CheckpointCorrupt, "natural"),
    "float_shape": (
        pack({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, bytes(8)),
        CheckpointCorrupt,
        "natural",
    ),
    "bool_shape": (pack(header({"a": ("F32", [True], [0, 4])}), bytes(4)), CheckpointCorrupt, "natural"),
    "range": (pack(header({"a": ("F32", [3], [0, 8])}), bytes(8)), CheckpointCorrupt, "'a' with 8 bytes"),
    "overflow": (pack(header({"a": ("F32", [1 << 40] * 4, [0, 8])}), bytes(8)), CheckpointCorrupt, "needed"),
    "trailing": (GOOD + b"PK", CheckpointCorrupt, "2 bytes after"),
    "long_name": (pack(header({"x" * 1_000_000: A}), bytes(8)), CheckpointCorrupt, "1000000 characters"),
    "many": (
        pack(b"{" + b",".join(b'"%d":{}' % i for i in range(1_000_000)) + b"}"),
        CheckpointCorrupt,
        "at most",
    ),
    "no_shape": (pack({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), CheckpointCorrupt, "all three"),
    "extra_field": (
        pack({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], "url": "x"}}),
        CheckpointCorrupt,
        "all three",
    ),
    "array_entry": (pack({"a": [1, 2]}), CheckpointCorrupt, "all three"),
    "metadata": (pack({"__metadata__": [1]}), CheckpointCorrupt, "metadata"),
    "dtype": (pack(header({"a": ("F4", [2], [0, 1])}), b"\0"), Unsupported, "'a'.*F4"),
    "dtype_number": (
        pack({"a": {"dtype": 7, "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
        Unsupported,
        "7",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_damaged_file_is_refused_by_its_fault(case: str, tmp_path: Path) -> None:
    content, error, words = FAULTS[case]
    path = write(tmp_path / "x.safetensors", content)
    began = time.process_time()
    with pytest.raises(error, match=words) as caught:
        load(path)
    assert time.process_time() - began < 1
    assert isinstance(caught.value, ControlKitError)
    assert str(path) in caught.value.what
    assert caught.value.code.startswith("CK-L")
    assert len(str(caught.value)) <= 600
    with pytest.raises(error):
        inspect(path)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = (adapter().save(tmp_path) / "diffusion_pytorch_model.safetensors").read_bytes()
    for length in [*range(64), *range(64, len(whole), 997), len(whole) - 1]:
        with pytest.raises(CheckpointCorrupt):
            load(write(tmp_path / "cut.safetensors", whole[:length]))


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
