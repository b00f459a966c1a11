"""From stored tensors to a module's: in which dtype, on which device, and what their values tell.

Every value is looked at once on its way: that it is finite, that it fits into the dtype it is converted to,
and how large the largest is, since a flipped bit or a wrong dtype label shows nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from controlkit.errors import DtypeUnsupported, Incomplete, NonFinite, ParameterError, Unsupported

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDENED = {
    torch.float64: torch.float32,
    torch.float8_e4m3fn: torch.float16,
    torch.float8_e5m2: torch.float16,
}

LARGE, OUTLYING = 100.0, 50.0
"""A weight is an outlier when it is above ``LARGE`` and ``OUTLYING`` times what tensors usually reach."""
TINY = 1e-4
_LOOKED_AT = 4096


def usable_device(device: torch.device | str | None) -> torch.device | None:
    """The device, if this machine has it.

    Raises:
        ParameterError: It is none, or not here.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except Exception as error:  # torch raises AssertionError, RuntimeError and others here
        raise ParameterError(
            "device",
            found=f"{str(device)!r:.60}",
            expected="a device that this machine and this torch have, such as 'cpu'",
            fix=f"torch says: {(str(error).splitlines() or [''])[0][:160]}",
        ) from error
    if found.type == "meta":
        raise ParameterError("device", found="'meta'", expected="a device that holds weights")
    return found


def can_hold(dtype: torch.dtype, device: torch.device | None) -> bool:
    """Whether tensors of this dtype can be made and used there."""
    try:
        torch.ones(1, device=device, dtype=dtype).mul_(2)
    except Exception:  # every device has its own errors
        return False
    return True


def main_dtype(
    dtypes: Mapping[str, torch.dtype],
    shapes: Mapping[str, tuple[int, ...]],
    names: Collection[str] | None = None,
) -> torch.dtype | None:
    """The dtype that most numbers are stored in; None where there are none.

    Args:
        dtypes: Of all tensors of a file, by name.
        shapes: Of the same.
        names: Those that count, as a file may hold other things beside them; None: all.
    """
    sizes: dict[torch.dtype, int] = {}
    for name in dtypes if names is None else names:
        sizes[dtypes[name]] = sizes.get(dtypes[name], 0) + math.prod(shapes[name])
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def choose_dtype(
    stored: Collection[torch.dtype],
    most: torch.dtype | None,
    wanted: torch.dtype | None,
    device: torch.device | None,
    what: str,
) -> tuple[torch.dtype, list[str]]:
    """The dtype of the module, and remarks on what is converted.

    Args:
        stored: Dtypes of its floating-point weights in the file.
        most: The dtype of most of them.
        wanted: What the caller asked for.
        device: Where the module goes.
        what: The file's name, for errors.

    Raises:
        DtypeUnsupported: The device cannot hold what was asked for.
    """
    most = torch.float32 if most is None else WIDENED.get(most, most)
    to = wanted or most
    if not can_hold(to, device):
        if wanted is not None:
            raise DtypeUnsupported(
                what,
                found=f"dtype {to}, which {device or 'cpu'} cannot hold".replace("torch.", ""),
                expected="one that it can",
                fix="Load it in float32.",
            )
        to = next(dtype for dtype in (torch.float16, torch.float32) if can_hold(dtype, device))
    others = sorted(str(dtype).removeprefix("torch.") for dtype in stored if dtype != to)
    if wanted is not None or not others:
        return to, []
    reason = "" if to == most else f", as {device or 'cpu'} cannot hold them"
    return to, [f"weights stored as {', '.join(others)} were converted to {to}{reason}".replace("torch.", "")]


class Placer:
    """Puts tensors where they go, and keeps what their values tell.

    Args:
        dtype: Of floating-point weights.
        device: Where they go; None: the CPU.
        what: The file's name, for errors.
        allow_nonfinite: Let NaN and infinity pass, with a remark.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device | None, what: str, *, allow_nonfinite: bool = False
    ) -> None:
        self._dtype, self._device, self._what, self._lenient = dtype, device, what, allow_nonfinite
        self._bad: dict[str, int] = {}
        self._overflowing: dict[str, float] = {}
        self._largest: dict[str, float] = {}
        self._away_from_zero: list[bool] = []

    def place(self, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor as the module holds it.

        Args:
            name: Of the tensor in the file.
            tensor: Read from it.
            dtype: Where the module holds integers: theirs.

        Raises:
            Unsupported: It is sparse or quantised.
            Incomplete: It has no data.
        """
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise Unsupported(
                f"{self._what}: {name!r:.100}",
                found="a sparse or quantised tensor",
                expected="a plain one",
                fix="Save plain tensors, or use the original weights.",
                code="CK-L27",
            )
        if tensor.is_meta:
            raise Incomplete(
                f"{self._what}: {name!r:.100}",
                found="a tensor without data (meta)",
                expected="weights",
                fix="Load it onto the CPU first.",
            )
        if dtype is None and tensor.numel():
            self._look(name, tensor)
        return tensor.to(
            device=self._device, dtype=dtype or self._dtype, memory_format=torch.contiguous_format
        )

    def finish(self) -> list[str]:
        """Remarks on the values of all tensors.

        Raises:
            NonFinite: Some are NaN or infinite, or would become so in the module's dtype.
        """
        notes: list[str] = []
        if self._bad:
            found = f"NaN or infinite values in {_named(self._bad)}"
            if not self._lenient:
                raise NonFinite(
                    self._what,
                    found=found,
                    expected="finite weights",
                    fix="Such weights make every picture black; download the file again, or take them as they"
                    " are with allow_nonfinite=True.",
                )
            notes.append(f"{found}; they were allowed")
        if self._overflowing:
            found = f"values too large for {self._dtype} in {_named(self._overflowing)}".replace("torch.", "")
            if not self._lenient:
                raise NonFinite(
                    self._what,
                    found=found,
                    expected="weights that stay finite",
                    fix="Load it with dtype=torch.bfloat16 or torch.float32.",
                )
            notes.append(f"{found}; they became infinite")
        return notes + self._remarks()

    def _look(self, name: str, tensor: Tensor) -> None:
        wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        extremes = torch.stack(torch.aminmax(wide))
        if not torch.isfinite(extremes).all():
            self._bad[name] = int((~torch.isfinite(wide)).sum())
            return
        if not torch.isfinite(extremes.to(self._dtype)).all():
            self._overflowing[name] = float(extremes.double().abs().max())
        self._largest[name] = float(extremes.double().abs().max())
        if tensor.ndim > 1 and tensor.numel() >= 64:
            some = wide.reshape(-1)[:_LOOKED_AT]
            self._away_from_zero.append(float((some.abs() < 0.125).float().mean()) < 0.01)

    def _remarks(self) -> list[str]:
        if not self._largest:
            return []
        usual = median(self._largest.values())
        outliers = {
            name: value
            for name, value in self._largest.items()
            if value > max(LARGE, OUTLYING * usual) and name not in self._overflowing
        }
        notes = []
        if outliers:
            notes.append(
                f"unusually large values (most tensors stay below {usual:.3g}) in {_named(outliers)}: "
                "the file may be damaged"
            )
        if 0 < usual < TINY:
            notes.append(
                f"in most tensors no weight is above {usual:.3g}: the file may be damaged, or name the wrong "
                "dtype"
            )
        elif self._away_from_zero and all(self._away_from_zero) and len(self._away_from_zero) > 1:
            notes.append("hardly a weight is near zero: the file may be damaged, or name the wrong dtype")
        return notes


def check_dtypes(stored: Mapping[str, torch.dtype], targets: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are no floating-point numbers, where the module has some.

    Args:
        stored: The dtype in the file of each of the module's tensors.
        targets: The module's tensors, by the same names.
        what: The file's name, for errors.

    Raises:
        Unsupported: Naming the tensor.
    """
    for name, dtype in stored.items():
        if targets[name].is_floating_point():
            is_right = dtype in FLOATS or dtype in WIDENED
        else:
            is_right = not dtype.is_floating_point and not dtype.is_complex
        if not is_right:
            raise Unsupported(
                f"{what}: {name!r:.100}",
                found=f"dtype {dtype}".replace("torch.", ""),
                expected="floating-point weights" if targets[name].is_floating_point() else "integers",
                fix="Quantised weights need scales that this file does not say; use the original.",
                code="CK-L27",
            )


def _named(values: Mapping[str, Any]) -> str:
    """The first five names with their numbers, and how many there are."""
    shown = ", ".join(f"{name!r:.70} ({value:.6g})" for name, value in list(values.items())[:5])
    return f"{len(values)} tensor{'s' if len(values) > 1 else ''}: {shown}"
