"""Writing a module so that a crash, a full disk or a kill leaves the old files as they were."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn

from controlkit.checkpoints.safetensors import DTYPES, bytes_of
from controlkit.errors import SaveError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_module(module: nn.Module, config: dict[str, Any], folder: str | Path) -> Path:
    """Write ``config.json`` and the weights in diffusers layout.

    Both files are written beside their final names, brought to the disk, and only then renamed.

    Args:
        module: Its state dict is written, in the dtypes it has.
        config: Entries of config.json.
        folder: Made where it does not exist.

    Returns:
        The folder.

    Raises:
        SaveError: The disk is full, the folder read-only, a weight without data. Files that were there
            are intact.
    """
    folder = Path(folder)
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    needed = sum(tensor.nbytes for tensor in state.values())
    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise SaveError(
            str(folder / WEIGHTS),
            found=f"{empty[0]!r} without data (meta)",
            expected="weights",
            fix="Load them first.",
        )
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    written: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, parts in ((WEIGHTS, _serialise(state)), (CONFIG, iter([text.encode()]))):
            temporary = folder / f".{name}.{uuid4().hex}.tmp"
            written.append((temporary, folder / name))
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        for temporary, final in written:
            os.replace(temporary, final)
        _sync_folder(folder)
    except OSError as error:
        raise SaveError(
            str(folder),
            found=_reason(error, folder),
            expected=f"{needed} bytes of room and the right to write",
            fix="Files that were there are intact. Make room, or choose another folder.",
            code="CK-L38",
        ) from error
    finally:
        for temporary, _ in written:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return folder


def _serialise(state: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: wide dtypes first, so that every tensor is aligned."""
    order = sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = state[name]
        stop = offset + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        tensor = state[name].cpu().contiguous()
        if tensor.numel():
            yield bytes_of(tensor)


def _reason(error: OSError, folder: Path) -> str:
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = next(part for part in (folder, *folder.absolute().parents) if part.exists())
        return f"{reason}, {shutil.disk_usage(place).free} bytes free"
    return reason


def _sync_folder(folder: Path) -> None:
    """Bring the renaming itself to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
