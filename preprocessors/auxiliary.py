"""Detectors of controlnet-aux: found, read and run here, at the size of the photograph.

controlnet-aux changes sizes: it brings the shortest side to 512 and both sides to multiples of 64. Here a
photograph is continued over its right and lower edge to the next multiple, and the map is cut back, so that
nothing is scaled; on photographs whose sides are multiples of 64 both give the same map.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TextIO

import numpy as np

from controlkit.errors import MissingExtra, NonFinite
from controlkit.preprocessors.base import Pixels
from controlkit.preprocessors.networks import Networked
from controlkit.preprocessors.weightfiles import files_of, local_files

if TYPE_CHECKING:
    from pathlib import Path

    import torch

REQUIREMENT = "controlkit[detectors]"
ANNOTATORS = "lllyasviel/Annotators"
"""The repository of the networks that the published ControlNets' training maps were made with."""
MULTIPLE = 64
_SWITCH = "KMP_DUPLICATE_LIB_OK"
"""What its modules of poses set when they are imported; it would hide faults of other programs."""
_ALIAS = "_controlkit_controlnet_aux"
_IMPORTING = threading.RLock()


def auxiliary(module: str) -> Any:
    """One of controlnet-aux's modules, without the others.

    Importing controlnet-aux imports all its detectors with whatever each of them needs, so that one broken
    package (mediapipe, timm) breaks them all. Its modules name one another relatively only; here they are
    imported below another name for the same folder, each when it is needed.

    Raises:
        MissingExtra: It is not installed, or does not load.
    """
    name = f"{_ALIAS}.{module}"
    if name in sys.modules:
        return import_module(name)
    cause: Exception | None = None
    with _IMPORTING, quiet():
        try:
            if _ALIAS not in sys.modules:
                spec = find_spec("controlnet_aux")
                if spec is None:
                    raise ModuleNotFoundError("No module named 'controlnet_aux'")
                package = ModuleType(_ALIAS)
                package.__path__ = list(spec.submodule_search_locations or ())
                sys.modules[_ALIAS] = package
            return import_module(name)
        except Exception as error:  # what it imports may fail in any way
            cause = error
    raise MissingExtra(
        "this detector needs controlnet-aux",
        found=f"{type(cause).__name__}: {cause}"[:300],
        expected=f"the module controlnet_aux.{module}",
        fix=f"Run: pip install {REQUIREMENT}",
    ) from cause


class _Muted:
    """What stands in for a text stream: one thread's words are dropped, those of others go through."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Import or build in it what prints, warns or draws random numbers; nothing of that is seen outside."""
    import torch

    stream: Any = _Muted(sys.stdout)
    before = os.environ.get(_SWITCH)
    try:
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(stream),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before


class Kept(NamedTuple):
    """A detector of controlnet-aux; some keep what they compute in themselves, so one call at a time."""

    detector: Any
    lock: threading.Lock


@dataclass(frozen=True)
class Auxiliary(Networked):
    """A detector that controlnet-aux runs.

    Attributes:
        files: The weight files, below the folder or repository.
    """

    extra = REQUIREMENT
    files: ClassVar[tuple[str, ...]]

    def wanted(self) -> tuple[str, ...]:
        """Those of ``files`` that these options need."""
        return self.files

    def source(self) -> str:
        """Where they are."""
        return self.weights

    def variant(self) -> tuple[str, ...]:
        paths = local_files(self.source(), self.wanted()) or ()
        told = [path.stat() for path in paths if path.is_file()]
        return (*self.wanted(), *(f"{each.st_size} {each.st_mtime_ns} {each.st_ino}" for each in told))

    def read(self, device: torch.device) -> Kept:
        paths = files_of(
            self.name,
            self.source(),
            self.wanted(),
            revision=self.revision,
            local_files_only=self.local_files_only,
        )
        with quiet():
            detector = self.assemble(paths)
        return Kept(detector.to(device), threading.Lock())

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        """controlnet-aux's detector, or its network, with the weights of ``paths``, one for each of `wanted`.

        Raises:
            CheckpointError: They are not its weights.
            MissingExtra: What it needs is not installed.
        """
        raise NotImplementedError

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        """Detect.

        Args:
            detector: What `assemble` made.
            photo: (H, W, 3), sides multiples of 64.
            side: The shorter of both, controlnet-aux's ``detect_resolution``.

        Returns:
            (H, W) or (H, W, 3).
        """
        return detector(photo, detect_resolution=side, image_resolution=side, output_type="np")

    def detect(self, photo: Pixels) -> Pixels:
        height, width = photo.shape[:2]
        below, beside = -height % MULTIPLE, -width % MULTIPLE
        padded = np.pad(photo, ((0, below), (0, beside), (0, 0)), mode="edge") if below or beside else photo
        try:
            found = self._found(padded, half=self.half)
        except FloatingPointError as error:
            if not self.half:
                raise NonFinite(
                    f"{self.name}: {self.source()}",
                    found="weights that give no finite answer",
                    expected="those that were published",
                    fix="Check that they are this detector's.",
                ) from error
            found = self._found(padded, half=False)  # larger numbers than float16 holds
        return np.ascontiguousarray(found[:height, :width])

    def _found(self, photo: Pixels, *, half: bool) -> Pixels:
        import torch

        kept, kind = self.network(), self._place().type
        with (
            kept.lock,
            torch.inference_mode(),
            torch.autocast(kind, torch.float16, enabled=half),
            np.errstate(invalid="raise", over="ignore"),
        ):
            return self.run(kept.detector, photo, min(photo.shape[:2]))
