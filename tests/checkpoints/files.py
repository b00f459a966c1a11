"""Weight files to order, whole and damaged, for the tests of this folder."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from controlkit.adapters.t2i_adapter import T2IAdapter
from tests import tiny


def adapter() -> T2IAdapter:
    """The smallest control there is: 10 tensors."""
    return tiny.t2i_adapter("sd1", channels=(8, 8))


def state(module: Any = None) -> dict[str, Tensor]:
    """A state dict that may be changed."""
    return {name: tensor.clone() for name, tensor in (module or adapter()).state_dict().items()}


def header(entries: Mapping[str, tuple[str, list[int], list[int]]]) -> dict[str, Any]:
    """A safetensors header: dtype, shape and offsets by name."""
    return {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in entries.items()
    }


def pack(listed: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file of this header (an object, or its text) and these bytes."""
    text = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write(path: Path, content: bytes) -> Path:
    """Write a file and give its path."""
    path.write_bytes(content)
    return path


class Call:
    """A call that a pickle would make when it is read, of a function by its name, which need not exist.

    Args:
        function: Module and name.
        arguments: For it.
        beside: Whether it lies in a dict, with numbers before and behind it.
    """

    def __init__(self, function: str, arguments: tuple[Any, ...], *, beside: bool = False) -> None:
        self.function, self.arguments, self.beside = function, arguments, beside

    def pickled(self, protocol: int) -> bytes:
        """The pickle, as `pickle.dumps` writes it in this protocol."""

        class Reduced:
            def __reduce__(self) -> tuple[Any, ...]:
                return _stand_in, call.arguments

        call = self
        content: Any = {"a": 1, "x": Reduced(), "z": 2} if self.beside else Reduced()
        module, _, name = self.function.rpartition(".")
        ours = f"{_stand_in.__module__}\n{_stand_in.__name__}\n".encode()
        if protocol < 4:
            made = pickle.dumps(content, protocol=protocol, fix_imports=False)
            return made.replace(ours, f"{module}\n{name}\n".encode())
        # Frames state their length, and texts theirs: assembled anew.
        stack_global = _short(module) + _short(name) + b"\x93"
        body = pickle.dumps(self.arguments, protocol=2)[2:-1] + b"R"
        if self.beside:
            return b"\x80%c}(%sK\1%s" % (protocol, _short("a"), _short("x")) + stack_global + body + b"u."
        return b"\x80%c" % protocol + stack_global + body + b"."


def _stand_in() -> None:
    """Takes the place of a function in a pickle that is being made."""


def _short(text: str) -> bytes:
    return b"\x8c%c" % len(text.encode()) + text.encode()


def canary(folder: Path) -> None:
    """A module beside the file that makes the marker when it is imported or called."""
    for path in (folder / "canary_of_tests.py", folder / "inner.py"):
        path.write_text("import os\nos.mkdir('marker')\ntouch = os.mkdir\n")


def in_zip(data: bytes, storages: Mapping[str, bytes]) -> bytes:
    """An archive like that of `torch.save`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/version", b"3\n")
        for key, content in storages.items():
            archive.writestr(f"x/data/{key}", content)
    return buffer.getvalue()


def in_legacy(data: bytes, storages: Mapping[str, bytes]) -> bytes:
    """A file like that of `torch.save` before version 1.6, of storages of float32."""
    before = [
        b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        pickle.dumps(1001, protocol=2),
        pickle.dumps({"protocol_version": 1001, "little_endian": True}, protocol=2),
    ]
    keys = b"\x80\2](" + b"".join(_text(key) for key in sorted(storages)) + b"e."
    content = [(len(storages[key]) // 4).to_bytes(8, "little") + storages[key] for key in sorted(storages)]
    return b"".join((*before, data, keys, *content))


def storage_of(key: str, count: int) -> bytes:
    """Instructions that put a storage of float32 on the stack."""
    number = b"\x8a\x08" + count.to_bytes(8, "little")
    cls = b"ctorch\nFloatStorage\n"
    return b"(" + _text("storage") + cls + _text(key) + _text("cpu") + number + b"tQ"


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()
