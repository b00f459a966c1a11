"""Rows 13, 14, 17 and 18 of the fault table: what `torch.save` wrote, or somebody who wants it to look so."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.checkpoints.files import Call, canary, in_legacy, in_zip, state, storage_of, write

CANARY = "canary_of_tests touch"
MARK = b"(" + b"X\4\0\0\0mark" + b"t"


def torch_saved(content: Any, *, zipped: bool = True, name: str = "x.pth", protocol: int = 2) -> Maker:
    """What `torch.save` writes of this."""

    def make(folder: Path) -> Path:
        canary(folder)
        options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
        torch.save(content, folder / name, **options)
        return folder / name

    return make


def assembled(instructions: bytes, *, zipped: bool = True, storages: dict[str, bytes] | None = None) -> Maker:
    """A file of `torch.save` around a pickle that was assembled by hand."""

    def make(folder: Path) -> Path:
        canary(folder)
        wrap = in_zip if zipped else in_legacy
        return write(folder / "x.pth", wrap(b"\x80\2" + instructions + b".", storages or {}))

    return make


# L13
DANGEROUS: dict[str, tuple[Callable[..., Any] | str, tuple[Any, ...]]] = {
    "canary": ("canary_of_tests.touch", ("marker",)),
    "os_mkdir": ("os.mkdir", ("marker",)),
    "eval": ("builtins.eval", ("__import__('os').mkdir('marker')",)),
    "submodule": ("canary_of_tests.inner.touch", ("marker",)),
    "getattr": ("builtins.getattr", (1, "real")),
    "pip": ("pip.main", (["--version"],)),
    "torch_hub": ("torch.hub.load", ("a/b", "c")),
    "empty_memory": ("torch.FloatTensor", (64,)),
    "bytearray": ("builtins.bytearray", (1 << 40,)),
}


@check(13)
def every_protocol_container_and_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocols 0 to 5, raw, in a dict, zipped and not, under four names: refused by the call's name."""
    canary(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for payload, (function, arguments) in DANGEROUS.items():
        call = Call(str(function), arguments)
        for protocol in range(6):
            raw = call.pickled(protocol)
            beside = Call(str(function), arguments, beside=True).pickled(protocol)
            contents = {
                "raw": raw,
                "dict": beside,
                "zip": in_zip(beside, {}),
                "legacy": in_legacy(beside, {}),
            }
            for container, content in contents.items():
                for name in ("x.pth", "x.safetensors", "x.CKPT", "x"):
                    with pytest.raises(CheckpointUnsafe) as caught:
                        load(write(folder / name, content))
                    if name in ("x.pth", "x.CKPT"):
                        assert caught.value.code == "CK-L13", (payload, protocol, container)
                        with pytest.raises(CheckpointUnsafe, match="Nothing of it was run"):
                            inspect(folder / name)
                        assert str(function) in str(caught.value)
                        assert "Nothing of it was run" in str(caught.value)
                    else:
                        assert caught.value.code == "CK-L12"
                    assert caught.value.__cause__ is None
    assert not (folder / "marker").exists()
    assert not [name for name in sys.modules if name.startswith("canary_of_tests")]


# L14
INNER = Call("canary_of_tests.touch", ("marker",))
NESTED = Call("torch.storage._load_from_bytes", (INNER.pickled(2),), beside=True).pickled(2)
refuse(14, "nested_by_torch", assembled(NESTED[2:-1]), CheckpointUnsafe, "_load_from_bytes", code="CK-L13")
NESTED = Call("torch.load", (INNER.pickled(2),), beside=True).pickled(2)
refuse(14, "nested_by_load", assembled(NESTED[2:-1]), CheckpointUnsafe, r"torch\.load", code="CK-L13")
NESTED = Call("torch.jit.load", ("x",), beside=True).pickled(2)
refuse(14, "jit", assembled(NESTED[2:-1]), CheckpointUnsafe, r"torch\.jit\.load", code="CK-L13")
EXTENSION = b"\x82\1"
refuse(14, "extension_registry", assembled(EXTENSION), CheckpointUnsafe, "instruction EXT1")
INSTANCE = b"(X\6\0\0\0marker" + b"icanary_of_tests\ntouch\n"
refuse(14, "old_instance", assembled(INSTANCE), CheckpointUnsafe, r"canary_of_tests\.touch", code="CK-L13")
ORDERED = b"ccollections\nOrderedDict\n)R"
STATE = ORDERED + b"}X\5\0\0\0itemsX\1\0\0\0xsb"
refuse(14, "state_hides_a_method", assembled(STATE), CheckpointUnsafe, "state for something")
refuse(14, "state_of_a_tensor", assembled(b"}" + storage_of("0", 1) + b")b"), CheckpointUnsafe, "state")
refuse(14, "call_of_a_result", assembled(ORDERED + b")R"), CheckpointUnsafe, r"a call of \?")
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
TENSOR = REBUILD + storage_of("0", 1) + b"K\0K\1\x85K\1\x85\x89"
HOOKS = b"}X\1\0\0\0a" + TENSOR + b"}X\1\0\0\0hX\1\0\0\0fs" + b"tRs"
refuse(14, "hooks", assembled(HOOKS, storages={"0": bytes(4)}), CheckpointUnsafe, "hooks")
NEGATED = b"}X\1\0\0\0a" + TENSOR + ORDERED + b"}X\3\0\0\0neg\x88s" + b"tRs"
refuse(14, "attributes", assembled(NEGATED, storages={"0": bytes(4)}), CheckpointUnsafe, "attributes")
MODULE = b"(X\6\0\0\0moduleK\1K\1K\1K\1tQ"
refuse(14, "reference_to_source_code", assembled(MODULE, zipped=False), CheckpointUnsafe, "no storage")
ENCODED = b"c_codecs\nencode\n(X\1\0\0\0aX\5\0\0\0rot13tR"
refuse(14, "odd_encoding", assembled(ENCODED), CheckpointUnsafe, "odd encoding")
DEEP = b"})" + b"\x85" * 500_000 + b"Ns"
refuse(14, "key_that_breaks_hashing", assembled(DEEP), CheckpointCorrupt, code="CK-L01")


@check(14)
def a_pickle_as_data_stays_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are a pickle are left out with the rest that is no tensor."""
    canary(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    torch.save({**state(), "optimizer": INNER.pickled(2)}, folder / "x.pth")
    with pytest.warns(ControlKitWarning, match="left out, such as 'optimizer'"):
        load(folder / "x.pth")
    assert not (folder / "marker").exists()


@check(14)
def storages_must_be_filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of storages that leaves one out would leave its tensor with whatever memory held before."""
    torch.save(state(), folder / "x.pth", _use_new_zipfile_serialization=False)
    whole = (folder / "x.pth").read_bytes()
    start = whole.rindex(b"\x80\2]q\0(")
    for changed in (
        whole[:start] + b"\x80\2]q\0." + whole[start + 7 :],
        whole.replace(whole[start:].split(b"q\1")[0], b"\x80\2]q\0(X\1\0\0\0a"),
    ):
        with pytest.raises(CheckpointCorrupt):
            load(write(folder / "y.pth", changed))


# L17
def tarred(folder: Path) -> Path:
    """As torch wrote before 0.1.10."""
    with tarfile.open(folder / "x.pth", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"\x80\2}."))
    return folder / "x.pth"


def scripted(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "x.pt")
    return folder / "x.pt"


FOREIGN = {
    "gguf": (b"GGUF\3\0\0\0" + bytes(64), "a GGUF file", "Convert"),
    "ggml": (b"ggml" + bytes(64), "a GGML file", "Convert"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file", "Keras"),
    "msgpack": (b"\x81\xa6params\x82\xa3abc" + bytes(64), "MessagePack", "from_flax=True"),
    "msgpack_large": (b"\xde\0\x20\xa6params" + bytes(64), "MessagePack", "from_flax=True"),
    "onnx": (b"\x08\7\x12\7pytorch\x1a\5" + bytes(64), "an ONNX model", "exported"),
    "onnx_without_producer": (b"\x08\x0a\x3a\x80\1" + bytes(64), "an ONNX model", "exported"),
}
for _name, (_content, *_says) in FOREIGN.items():
    for _suffix in (".safetensors", ".pth", ".onnx"):
        refuse(
            17,
            _name + _suffix,
            lambda folder, content=_content, suffix=_suffix: write(folder / f"x{suffix}", content),
            Unsupported,
            *_says,
        )
refuse(17, "tar", tarred, Unsupported, "tar archive", "torch.load of the torch that wrote it")
refuse(17, "torchscript", scripted, Unsupported, "TorchScript", r"torch\.jit\.load")


# L18
for _zipped in (True, False):
    for _content in ([1], None, "text", 7, torch.zeros(2), (1, 2)):
        _kind = type(_content).__name__
        refuse(
            18,
            f"{_kind}_{'zip' if _zipped else 'legacy'}",
            torch_saved(_content, zipped=_zipped),
            NotACheckpoint,
            f"a saved {_kind}",
            "state_dict",
        )
    refuse(
        18,
        f"module_{'zip' if _zipped else 'legacy'}",
        torch_saved(torch.nn.Conv2d(1, 1, 1), zipped=_zipped),
        NotACheckpoint,
        r"a whole saved module \(torch\.nn\.modules\.conv\.Conv2d\)",
        "state_dict",
    )
refuse(18, "no_tensor", torch_saved({"a": 1}), NotACheckpoint, "1 entries and no tensor")
refuse(18, "ordered", torch_saved(OrderedDict()), NotACheckpoint, "0 entries and no tensor")
refuse(
    18, "plain", lambda f: write(f / "x.pth", pickle.dumps({"a": [1.0]})), NotACheckpoint, "a plain pickle"
)
refuse(18, "dict_as_source", lambda folder: {"a": 1}, NotACheckpoint, "no tensor")


@check(18)
def a_module_that_was_allowed_to_run_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torch.nn.Conv2d(1, 1, 1), folder / "x.pth")
    with pytest.raises(NotACheckpoint, match="a saved Conv2d") as caught:
        load(folder / "x.pth", allow_pickle=True)
    assert isinstance(caught.value, ControlKitError)
