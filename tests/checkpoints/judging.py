"""What becomes of changed weight files at the door, counted, and what must hold of each."""

from __future__ import annotations

import hashlib
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controlkit.checkpoints import load
from controlkit.errors import ControlKitError
from controlkit.module import ControlModule
from tests.checkpoints.mutations import CONFIGS, SUFFIXES, Format, mutants

SECONDS = 5.0
"""Of CPU, that no file may take."""


class Fault(AssertionError):
    """The door did what it must not do."""


@dataclass
class Tally:
    """What became of the files.

    Args:
        refused: By code.
        unchanged: Accepted with the weights of the whole file: only remarks or padding were changed.
        altered: Accepted with other finite weights, all from the file.
        late: Of those refused, the ones that a reader stumbled over: an error of Python that was caught.
        slowest: Seconds of CPU of the slowest file, and which it was.
    """

    refused: Counter[str] = field(default_factory=Counter[str])
    unchanged: int = 0
    altered: int = 0
    late: Counter[str] = field(default_factory=Counter[str])
    slowest: tuple[float, str] = (0.0, "")
    grown: int = 0

    @property
    def total(self) -> int:
        return sum(self.refused.values()) + self.unchanged + self.altered


def judge(made: Format, count: int, folder: Path, seed: int = 0) -> Tally:
    """Load every mutant: it is refused by an error of ours, or whole, finite and all from the file.

    With the digest of the whole file every mutant is refused.

    Raises:
        Fault: One of them did not hold; its label makes the file again.
    """
    tally = Tally()
    weights: dict[bytes, dict[str, Tensor]] = {}
    path = folder / f"mutant{SUFFIXES[made]}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for label, name, content, whole in mutants(made, count, seed):
        if whole not in weights:
            path.write_bytes(whole)
            weights[whole] = _load(path, label, name).state_dict()
        path.write_bytes(content)
        began = time.process_time()
        result = tried(path, label, name)
        tally.slowest = max(tally.slowest, (time.process_time() - began, label))
        if isinstance(result, ControlKitError):
            check_error(result, label)
            tally.refused[result.code] += 1
            if isinstance(result.__cause__, Exception):
                tally.late[f"{type(result.__cause__).__name__} at {_place(result.__cause__)}"] += 1
            continue
        state = result.state_dict()
        check_from_file(state, content, label)
        if state.keys() == weights[whole].keys() and all(
            torch.equal(tensor, weights[whole][key]) for key, tensor in state.items()
        ):
            tally.unchanged += 1
        else:
            tally.altered += 1
        again = tried(path, label, name, hashlib.sha256(whole).hexdigest())
        if not isinstance(again, ControlKitError) or again.code != "CK-L29":
            raise Fault(f"not found by its digest: {label}")
    tally.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    return tally


def _load(path: Path, label: str, seed: str, sha256: str | None = None) -> ControlModule:
    with _limited(label):
        return load(path, config=CONFIGS.get(seed), sha256=sha256)


def tried(path: Path, label: str, seed: str, sha256: str | None = None) -> ControlModule | ControlKitError:
    try:
        return _load(path, label, seed, sha256)
    except ControlKitError as error:
        return error
    except Fault:
        raise
    except BaseException as error:
        raise Fault(f"{type(error).__name__} at {label}") from error


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"


def check_error(error: ControlKitError, label: str) -> None:
    text = str(error)
    if len(text) > 600 or not text.isprintable() or not error.code.startswith("CK-L") or not error.found:
        raise Fault(f"{text} ({error.code}) at {label}")


def check_from_file(state: Mapping[str, Tensor], content: bytes, label: str) -> None:
    """Every number is finite, and stands in the file: none is left over from memory."""
    for name, tensor in state.items():
        if tensor.is_meta or not bool(torch.isfinite(tensor).all()):
            raise Fault(f"{name} is empty or not finite at {label}")
        values = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if values not in content and not _stands_in(tensor, content):
            raise Fault(f"{name} holds what the file does not at {label}")


def _stands_in(tensor: Tensor, content: bytes) -> bool:
    """Whether the numbers stand in the file, in whatever order and dtype."""
    values = set(tensor.double().flatten().tolist())
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for start in range(dtype.itemsize):
            part = content[start:]
            held = torch.frombuffer(
                bytearray(part[: len(part) // dtype.itemsize * dtype.itemsize]), dtype=dtype
            )
            values -= set(held.to(tensor.dtype).double().tolist())
            if not values:
                return True
    return False


@contextmanager
def _limited(label: str) -> Iterator[None]:
    """No file may take longer, in seconds of CPU."""

    def stop(*details: Any) -> None:
        raise Fault(f"longer than {SECONDS} s: {label}")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
