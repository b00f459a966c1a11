"""Weight files to order, whole and damaged, for the tests of this folder."""

from __future__ import annotations

import json
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
