"""Writing a module so that a crash, a full disk or a kill leaves the old files as they were."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch import Tensor

from controlkit.checkpoints.card import CARD, card_of, is_ours
from controlkit.checkpoints.safetensors import DTYPES, bytes_of
from controlkit.errors import SaveError

if TYPE_CHECKING:
    from controlkit.module import ControlModule

Progress = Callable[[int, int], None]

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"
_CHUNK = 16 << 20
_STALE = 3600.0
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_module(module: ControlModule, folder: str | Path, *, progress: Progress | None = None) -> Path:
    """Write ``config.json``, the weights and a model card in diffusers layout.

    All files are written beside their final names, brought to the disk, and only then renamed. A model
    card that somebody else wrote is left as it is.

    Args:
        module: Its state dict is written, in the dtypes it has.
        folder: Made where it does not exist.
        progress: Called with the bytes written so far and in all.

    Returns:
        The folder.

    Raises:
        SaveError: The disk is full, the folder read-only, a weight without data. Files that were there
            are intact.
    """
    folder = Path(folder)
    state = _state_of(module.state_dict(), folder / WEIGHTS)
    text = json.dumps(module.config_entries(), indent=2, sort_keys=True) + "\n"
    files = [(folder / WEIGHTS, _serialise(state)), (folder / CONFIG, iter([text.encode()]))]
    if is_ours(folder / CARD):
        files.append((folder / CARD, iter([card_of(module).encode()])))
    _write(files, sum(tensor.nbytes for tensor in state.values()), progress)
    return folder


def save_original(module: ControlModule, file: str | Path, *, progress: Progress | None = None) -> Path:
    """Write one safetensors file with the names of the implementation that the weights come from.

    Args:
        module: What `ControlModule.original_state` gives is written.
        file: Its name ends in ``.safetensors``; its folder is made where it does not exist.
        progress: Called with the bytes written so far and in all.

    Returns:
        The file.

    Raises:
        SaveError: As `save_module`, or another ending.
        Unsupported: The layout cannot hold this module.
    """
    file = Path(file)
    if file.suffix.lower() != ".safetensors":
        raise SaveError(
            str(file), found=f"the ending {file.suffix!r}", expected=".safetensors", fix="Give such a name."
        )
    state = _state_of(module.original_state(), file)
    _write([(file, _serialise(state))], sum(tensor.nbytes for tensor in state.values()), progress)
    return file


def _state_of(state: Mapping[str, Tensor], place: Path) -> dict[str, Tensor]:
    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise SaveError(
            str(place),
            found=f"{empty[0]!r} without data (meta)",
            expected="weights",
            fix="Load them first.",
        )
    return {name: tensor.detach() for name, tensor in state.items()}


def _write(
    files: list[tuple[Path, Iterator[bytes | memoryview]]], needed: int, progress: Progress | None = None
) -> None:
    """Write all files or none; ``needed`` is their size in bytes, for the error."""
    folder = files[0][0].parent
    done = 0
    written: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for final, parts in files:
            _remove_stale(final)
            temporary = folder / f".{final.name}.{uuid4().hex}.tmp"
            written.append((temporary, final))
            with open(temporary, "wb") as file:
                for part in parts:
                    for begin in range(0, len(part), _CHUNK):
                        done += file.write(part[begin : begin + _CHUNK])
                        if progress is not None:
                            progress(min(done, needed), needed)
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


def _remove_stale(final: Path) -> None:
    """Remove what a writer of this file left behind when it was killed, an hour ago or longer."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


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
