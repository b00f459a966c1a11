"""The table of bad inputs that a door for weight files meets, and what it must do with each.

A row has a number, what it is about, and cases: refusals, each an input with its error, and checks, which are
functions. `test_faults.py` runs them all and sees to it that no row is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controlkit.errors import ControlKitError

Maker = Callable[[Path], Any]

ROWS: dict[int, str] = {
    1: "truncated at any byte",
    2: "0 bytes",
    3: "header length 2^62, beyond the file, beyond the limit",
    4: "header not UTF-8, bad JSON, not an object",
    5: "duplicate key",
    6: "overlapping, holed, descending, negative offsets",
    7: "range that is not shape x dtype; overflowing product",
    8: "trailing bytes",
    9: "deep header, a million entries, a name of a megabyte",
    10: "unknown dtype string",
    11: "an error page or a pointer under a weight file's name",
    12: "contents under another format's name",
    13: "pickle with a dangerous global",
    14: "nested pickles, helpers of torch, state tricks",
    15: "zip with bad checksum, flags, two pickles, two readings",
    16: "compression and aliasing bombs",
    17: "tar, TorchScript, ONNX, GGUF, msgpack",
    18: "top level is a list, a module, None",
    19: "wrapped weights, ambiguous wraps",
    20: "wrong kind",
    21: "wrong base",
    22: "missing keys",
    23: "extra keys",
    24: "shape mismatch",
    25: "NaN and infinity",
    26: "zero output convolutions",
    27: "integers, complex, bool, float64",
    28: "float8 and bfloat16 on a device without them",
    29: "swapped dtype label, flipped bits",
    30: "config missing, malformed, of another class, unknown keys",
    31: "config of a giant",
    32: "config that names code",
    33: "shards missing, extra, elsewhere",
    34: "file replaced between check and load",
    35: "unreadable, folder, pipe, device, drop while reading",
    36: "download cut, wrong length, refused, no network",
    37: "cache shared by two processes",
    38: "save on a full or read-only disk, killed",
}


@dataclass(frozen=True)
class Refusal:
    """An input that must be refused.

    Args:
        make: Given an empty folder, makes the input in it and gives what to load.
        error: The exact class.
        code: The stable code.
        says: Regular expressions that the message must match.
        options: For `load`.
        header: Whether `inspect` must refuse it with the same code.
    """

    make: Maker
    error: type[ControlKitError]
    code: str
    says: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    header: bool = True


Check = Callable[[Path, pytest.MonkeyPatch], None]

REFUSALS: dict[int, dict[str, Refusal]] = {}
CHECKS: dict[int, dict[str, Check]] = {}


def refuse(
    row: int,
    name: str,
    make: Maker,
    error: type[ControlKitError],
    *says: str,
    code: str | None = None,
    header: bool | None = None,
    **options: Any,
) -> None:
    """Add a refusal to a row; its code is the row's unless another is given.

    ``header``: whether `inspect` refuses it too; by default for the rows up to 19, whose faults show there.
    """
    shows = row <= 19 if header is None else header
    case = Refusal(make, error, code or f"CK-L{row:02d}", says, options, shows)
    assert REFUSALS.setdefault(row, {}).setdefault(name, case) is case, f"two cases named {name}"


def check(row: int) -> Callable[[Check], Check]:
    """Add a function to a row, under its name."""

    def add(function: Check) -> Check:
        CHECKS.setdefault(row, {})[getattr(function, "__name__", "check")] = function
        return function

    return add
