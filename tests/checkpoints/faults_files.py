"""Rows 1 to 12 of the fault table: safetensors files, and what lies under a weight file's name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from controlkit.checkpoints import inspect, load
from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointUnsafe,
    ControlKitError,
    ControlKitWarning,
    NotACheckpoint,
    Unsupported,
)
from tests.checkpoints.fault_table import Maker, check, refuse
from tests.checkpoints.files import adapter, header, pack, state, write

WEIGHTS = "diffusion_pytorch_model.safetensors"
A, B = ("F32", [2], [0, 8]), ("F32", [2], [8, 16])
DATA = bytes(16)
GOOD = pack(header({"a": A, "b": B}), DATA)


def named(content: bytes, name: str = "x.safetensors") -> Maker:
    """A file of this content."""
    return lambda folder: write(folder / name, content)


def saved(folder: Path, name: str = "x.pth", *, zipped: bool = True) -> bytes:
    """The bytes of a whole file of `torch.save`."""
    torch.save(state(), folder / name, _use_new_zipfile_serialization=zipped)
    return (folder / name).read_bytes()


# L1
refuse(1, "in_the_prefix", named(GOOD[:4]), CheckpointCorrupt, "4 bytes; needed at least 10", "Download")
refuse(
    1, "in_the_header", named(GOOD[:40]), CheckpointCorrupt, "40 bytes; needed 131 for the header", "Download"
)
refuse(1, "in_the_data", named(GOOD[:-1]), CheckpointCorrupt, "15 bytes of weights; needed 16", "Download")
refuse(1, "pickle_of_one_byte", named(b"\x80", "x.pth"), CheckpointCorrupt, "1 bytes")
refuse(1, "zip_of_three_bytes", named(b"PK\3", "x.pth"), CheckpointCorrupt, "3 bytes", "Download")
DIGEST = "ab" * 32
CUTS: dict[str, Callable[[Path], bytes]] = {
    "x.safetensors": lambda _: GOOD[:-1],
    "prefix.safetensors": lambda _: GOOD[:4],
    "zip.pth": lambda folder: saved(folder)[:-5],
    "legacy.pth": lambda folder: saved(folder, zipped=False)[:-5],
}
for name, cut in CUTS.items():
    refuse(
        1,
        f"digest_known_of_{name}",
        lambda folder, name=name, cut=cut: write(folder / name, cut(folder)),
        CheckpointCorrupt,
        f"Download .*SHA-256 {DIGEST}",
        header=False,
        sha256=DIGEST,
    )


@check(1)
def at_any_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cut within the first and last kilobyte, and every 499th between, of all three containers."""
    contents = {
        "x.safetensors": (adapter().save(folder / "m") / WEIGHTS).read_bytes(),
        "z.pth": saved(folder),
        "l.pth": saved(folder, zipped=False),
    }
    for name, whole in contents.items():
        size = len(whole)
        for length in {*range(1, 1000, 7), *range(1000, size - 1000, 499), *range(size - 1000, size, 7)}:
            with pytest.raises(CheckpointCorrupt) as caught:
                load(write(folder / name, whole[:length]))
            assert caught.value.code == "CK-L01", (name, length, str(caught.value))
            assert "Download" in caught.value.fix, (name, length)
            assert (
                str(length) in str(caught.value)
                or "breaks off" in str(caught.value)
                or "of weights" in str(caught.value)
            ), str(caught.value)


# L2
for name in ("x.safetensors", "x.pth", "x.ckpt", "x"):
    refuse(2, name, named(b"", name), CheckpointCorrupt, "an empty file")

# L3 (time and memory in `test_faults.py`)
LENGTHS = {
    "2_62": pack(header({"a": A, "b": B}), DATA, length=1 << 62),
    "beyond_the_file": pack(header({"a": A, "b": B}), DATA, length=5 << 20),
    "all_ones": b"\xff" * 8 + b"{" + bytes(100),
    "101_mb": (101 << 20).to_bytes(8, "little") + b"{" + bytes(100),
}
for name, content in LENGTHS.items():
    refuse(3, name, named(content), CheckpointCorrupt, "for the header alone", "Download")
refuse(
    3, "beyond_the_limit", named(pack(b"{" + b" " * (5 << 20) + b"}")), CheckpointCorrupt, "at most 4194304"
)

# L4
refuse(4, "not_utf8", named(pack(b'{"\xff": 1}')), CheckpointCorrupt, "at byte 2")
refuse(4, "bad_json", named(pack(b'{"a": }')), CheckpointCorrupt, "char 6")
refuse(4, "cut_json", named(pack(b'{"a": [')), CheckpointCorrupt, "char 7")
refuse(4, "nan", named(pack(b'{"a": NaN}')), CheckpointCorrupt, "NaN at char 6 is not JSON")
QUOTED = b'{"\\"NaN": "NaN", "b": [1, -Infinity]}'
refuse(4, "infinity", named(pack(QUOTED)), CheckpointCorrupt, "-Infinity at char 26 is not JSON")
refuse(4, "deep_objects", named(pack(b'{"a":' * 100_000)), CheckpointCorrupt, "nested too deeply")
refuse(4, "list", named(pack(b"[1, 2]  ")), CheckpointCorrupt, "begins with|is a list")
refuse(4, "metadata_is_a_list", named(pack({"__metadata__": [1]})), CheckpointCorrupt, "metadata")
refuse(4, "entry_is_a_list", named(pack({"a": [1]})), CheckpointCorrupt, "'a' without dtype")

NO_SHAPE = {"a": {"dtype": "F32", "data_offsets": [0, 0]}}
MORE = {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], "url": "x"}}
refuse(4, "no_shape", named(pack(NO_SHAPE)), CheckpointCorrupt, "'a' without dtype, shape and data_offsets")
refuse(4, "another_field", named(pack(MORE)), CheckpointCorrupt, "needed all three")
refuse(4, "length_too_short", named(pack(header({"a": A}), DATA, length=10)), CheckpointCorrupt, "not JSON")

# L5
TWICE = json.dumps(header({"a": A})).encode()[:-1] + b"," + json.dumps(header({"a": B})).encode()[1:]
refuse(5, "two_entries", named(pack(TWICE, DATA)), CheckpointCorrupt, "'a' twice in the header")
INSIDE = b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}'
refuse(5, "inside_an_entry", named(pack(INSIDE, bytes(8))), CheckpointCorrupt, "'shape' twice")

# L6
OVERLAP = pack(header({"a": A, "b": ("F32", [2], [4, 12])}), bytes(12))
HOLE = pack(header({"a": A, "b": ("F32", [2], [12, 20])}), bytes(20))
SAME = pack(header({"a": A, "b": A}), bytes(8))
refuse(6, "overlap", named(OVERLAP), CheckpointCorrupt, "'b', which overlaps 'a'")
refuse(6, "the_same_range", named(SAME), CheckpointCorrupt, "'b', which overlaps 'a'")
refuse(6, "hole", named(HOLE), CheckpointCorrupt, "'b', which leaves 4 bytes unused after 'a'")
refuse(6, "hole_at_the_start", named(pack(header({"b": B}), DATA)), CheckpointCorrupt, "'b', .*'the header'")
refuse(
    6, "descending", named(pack(header({"a": ("F32", [2], [8, 0])}), DATA)), CheckpointCorrupt, "'a'.*8.*0"
)
refuse(6, "negative", named(pack(header({"a": ("F32", [2], [-8, 0])}), DATA)), CheckpointCorrupt, "'a'.*-8")

# L7
SHORT = pack(header({"a": ("F32", [3], [0, 8])}), bytes(8))
FULL = pack(header({"a": ("F32", [1 << 62, 1 << 62], [0, 8])}), bytes(8))
WRAPS = pack(header({"a": ("F32", [1 << 63, 2], [0, 0])}))
refuse(7, "too_short", named(SHORT), CheckpointCorrupt, r"'a' with 8 bytes; needed 12 for shape \[3\]")
refuse(7, "overflow", named(FULL), CheckpointCorrupt, "'a' with 8 bytes")
refuse(7, "product_that_wraps_to_0", named(WRAPS), CheckpointCorrupt, "'a' with 0 bytes")
NEGATIVE = pack(header({"a": ("F32", [-1, -2], [0, 8])}), bytes(8))
refuse(7, "negative_shape", named(NEGATIVE), CheckpointCorrupt, "'a'.*-1", code="CK-L06")

for name, lengths in {"fraction": [2.0], "flag": [True], "text": ["2"], "nothing": None}.items():
    entry = {"a": {"dtype": "F32", "shape": lengths, "data_offsets": [0, 8]}}
    refuse(7, name, named(pack(entry, bytes(8))), CheckpointCorrupt, "'a'.*natural", code="CK-L06")

# L8
refuse(8, "two_bytes", named(GOOD + b"PK"), CheckpointCorrupt, "2 bytes after the last tensor")
refuse(8, "a_zip_archive", named(GOOD + b"PK\5\6" + bytes(18)), CheckpointCorrupt, "22 bytes after")
refuse(
    8,
    "zip",
    lambda folder: write(folder / "y.pth", saved(folder) + b"junk"),
    CheckpointCorrupt,
    "4 bytes after",
)
refuse(
    8,
    "zip_far",
    lambda folder: write(folder / "y.pth", saved(folder) + bytes(200_000)),
    CheckpointCorrupt,
    "200000 bytes after the end",
)
refuse(
    8,
    "legacy",
    lambda folder: write(folder / "y.pth", saved(folder, zipped=False) + b"junk"),
    CheckpointCorrupt,
    "4 bytes after the last tensor",
)

# L9 (time and memory in `test_faults.py`)
LIMIT = 4 << 20
EMPTY = ("F32", [0], [0, 0])
HEAVY: dict[str, bytes] = {
    "deep": pack(b'{"a":' + b"[" * (LIMIT - 100)),
    "million": pack(b"{" + b",".join(b'"%d":{}' % i for i in range(1_000_000)) + b"}"),
    "many_lists": pack(b'{"a":[' + b",".join([b"[]"] * (LIMIT // 3 - 9)) + b"]}"),
    "many_names": pack(b"{" + b",".join(b'"%06x":0' % i for i in range(LIMIT // 11 - 9)) + b"}"),
    "long_name": pack(header({"x" * 1_000_000: A}), bytes(8)),
    "long_number": pack(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "valid_entries": pack(header(dict.fromkeys((f"adapter.{n}" for n in range(50_000)), EMPTY))),
    "as_many_as_are_taken": pack(header(dict.fromkeys((f"{n}." for n in range(25_000)), EMPTY))),
}
refuse(9, "deep", named(HEAVY["deep"]), CheckpointCorrupt, "lists; needed at most", code="CK-L09")
refuse(9, "million", named(HEAVY["million"]), CheckpointCorrupt, "at most 4194304", code="CK-L03")
refuse(9, "many_lists", named(HEAVY["many_lists"]), CheckpointCorrupt, "lists; needed at most", code="CK-L09")
refuse(9, "many_names", named(HEAVY["many_names"]), CheckpointCorrupt, "'000000' without", code="CK-L04")
refuse(
    9, "long_name", named(HEAVY["long_name"]), CheckpointCorrupt, "1000000 characters; needed at most 1000"
)
refuse(9, "valid_entries", named(HEAVY["valid_entries"]), CheckpointCorrupt, "100000 lists; needed at most")
refuse(
    9,
    "as_many_as_are_taken",
    named(HEAVY["as_many_as_are_taken"]),
    NotACheckpoint,
    "25000 tensors of no known layout",
    code="CK-L20",
)
refuse(9, "long_number", named(HEAVY["long_number"]), CheckpointCorrupt, "not JSON", code="CK-L04")

# L10
F4 = pack(header({"a": ("F4", [2], [0, 1])}), b"\0")
refuse(10, "four_bits", named(F4), Unsupported, "'a'", "dtype 'F4'; needed one of F64, F32")
refuse(
    10,
    "a_number",
    named(pack({"a": {"dtype": 7, "shape": [], "data_offsets": [0, 4]}}, bytes(4))),
    Unsupported,
    "'a'",
    "dtype 7; needed one of",
)

LISTED = pack({"a": {"dtype": ["F32"], "shape": [], "data_offsets": [0, 4]}}, bytes(4))
refuse(10, "a_list_that_cannot_be_hashed", named(LISTED), Unsupported, "'a'", r"dtype \['F32'\]")

# L11
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
OTHERS = {
    "lfs": (POINTER, "Git LFS pointer", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html>Sign in</html>", "a web page", "login"),
    "html_late": (b"\r\n\r\n  <html><body>Not found", "a web page", "check the address"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page", "login"),
    "json": (b'{"error": "Repository not found"}', "JSON text", "Give the weight file", "needs a login"),
    "json_like_a_header": (b'{"erro":{"code": 404}}', "JSON text", "check the address"),
    "words": (b"Entry not found", "the words 'Entry not found'", "check the address"),
    "words_like_a_pickle": (b"Invalid username or password.", "the words 'Invalid", "needs a login"),
    "status": (b"404: Not Found\n", "the words '404: Not", "check the address"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture", r"\.on\(\)"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "a gzip archive", "Unpack"),
}
for name, (content, *says) in OTHERS.items():
    for suffix in (".safetensors", ".pth"):
        refuse(11, name + suffix, named(content, f"x{suffix}"), NotACheckpoint, *says)

# L12
SAFE_NAMES = (".safetensors", ".Safetensors", ".SAFETENSORS", ".sft", ".pth.safetensors", "")
PICKLE_NAMES = (".ckpt", ".CKPT", ".pth", ".pt", ".bin", ".pkl", ".safetensors.pth")


@check(12)
def six_contents_under_thirteen_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file holds decides; a pickle is read only under a pickle's name, or where it is allowed."""
    contents = {
        "safetensors": (adapter().save(folder / "m") / WEIGHTS).read_bytes(),
        "zip": saved(folder),
        "legacy": saved(folder, zipped=False),
        "html": b"<html>",
        "payload": pickle.dumps({"a": print}),
        "empty": b"",
    }
    for suffix in (*SAFE_NAMES, *PICKLE_NAMES):
        for kind, content in contents.items():
            path = write(folder / f"file{suffix}", content)
            is_pickle_name = suffix in PICKLE_NAMES
            if kind == "safetensors" and not is_pickle_name:
                assert load(path).notes == ()
            elif kind == "safetensors":
                with pytest.warns(ControlKitWarning, match="named like a pickle and holds safetensors"):
                    load(path)
            elif kind in ("zip", "legacy") and is_pickle_name:
                assert inspect(path).kind == load(path).kind == "t2i-adapter"
            else:
                with pytest.raises(ControlKitError) as caught:
                    load(path)
                expected = {"html": NotACheckpoint, "empty": CheckpointCorrupt}.get(kind, CheckpointUnsafe)
                assert type(caught.value) is expected
                with pytest.raises(ControlKitError) as again:
                    inspect(path)
                assert str(again.value) == str(caught.value)
                if kind in ("zip", "legacy"):
                    assert caught.value.code == "CK-L12"
                    assert "The name is wrong" in str(caught.value)
                    with pytest.warns(ControlKitWarning, match="not named like a pickle and holds one"):
                        assert load(path, allow_pickle=True).kind == "t2i-adapter"
