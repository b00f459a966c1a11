"""Networks of detectors: read once, kept in bounded number, freed on request."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from controlkit.errors import DeviceMismatch, ParameterError
from controlkit.preprocessors.base import Detector, option

if TYPE_CHECKING:
    import torch

DEVICES = "auto, cpu, cuda, cuda:0, mps"

_KEPT: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
_LIMIT = [2]
_LOCK = RLock()


def free() -> int:
    """Forget every network that detectors hold, so that their memory can be used for something else.

    Returns:
        How many there were. The next detection reads its network again.
    """
    with _LOCK:
        count = len(_KEPT)
        _KEPT.clear()
    _release()
    return count


def keep(count: int) -> None:
    """Set how many networks are held at once (2 until this is called); the least recently used goes first.

    Args:
        count: From 0, which reads a network for each picture or list, to as many as memory holds.

    Raises:
        ParameterError: Below 0, or not a whole number.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError("count", found=repr(count)[:80], expected="a whole number from 0")
    with _LOCK:
        _LIMIT[0] = count
        _shrink()
    _release()


def held() -> int:
    """How many networks are held now."""
    return len(_KEPT)


@dataclass(frozen=True)
class Networked(Detector):
    """A detector that runs a network, whose weights are found by `weights` and read when first needed."""

    needs_weights = True

    weights: str = option("", meaning="where its weights are: a hub id, a folder, or a file")
    revision: str = option("", meaning="branch, tag or commit on the hub; empty: the main branch")
    local_files_only: bool = option(False, meaning="never connect to the hub")
    device: str = option("auto", meaning=f"where it runs: {DEVICES}; auto is CUDA where there is one")
    half: bool = option(False, meaning="compute in float16: faster on a GPU, values off by about 1 of 255")

    def read(self, device: torch.device) -> Any:
        """Read the network onto a device, ready to run; called once while it is held.

        Raises:
            CheckpointError: The weights cannot be found or used.
            MissingExtra: A package that it needs is not installed.
        """
        raise NotImplementedError

    def variant(self) -> tuple[str, ...]:
        """What else decides which network `read` gives, beside the options above."""
        return ()

    def network(self) -> Any:
        """The network, read now or held from before."""
        device = self._place()
        files = (self.weights, identity(self.weights), *self.variant())
        key = (type(self), files, self.revision, str(device), self.half)
        return _held(key, lambda: self.read(device))

    def _place(self) -> torch.device:
        import torch

        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ParameterError(f"{self.name}: device", found=repr(name), expected=DEVICES) from error
        there = {
            "cpu": 1,
            "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
            "mps": int(torch.backends.mps.is_available()),
        }
        if (device.index or 0) >= there.get(device.type, 0):
            raise DeviceMismatch(
                f"{self.name}: device",
                found=f"{name!r}, which is not here",
                expected=DEVICES,
                fix="Give device='cpu', or 'auto'.",
            )
        return device


def identity(weights: str) -> str:
    """What tells files that were replaced from those that were there: names, sizes and times.

    Args:
        weights: A file or a folder; of a hub id nothing is known here, and the answer is empty.
    """
    try:
        place = Path(weights).expanduser()
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        about = [(file.name, (told := file.stat()).st_size, told.st_mtime_ns) for file in files]
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or no such user
        return ""
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _held(key: tuple[Any, ...], read: Callable[[], Any]) -> Any:
    """One reader at a time: two threads that need the same network must not both read it."""
    with _LOCK:
        if key not in _KEPT:
            _shrink(room=1)
            network = read()
            if _LIMIT[0] == 0:
                return network
            _KEPT[key] = network
        _KEPT.move_to_end(key)
        return _KEPT[key]


def _shrink(room: int = 0) -> None:
    while _KEPT and len(_KEPT) + room > _LIMIT[0]:
        _KEPT.popitem(last=False)


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
