"""Several functions as one: their sum, each with its target and weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from controlkit.contracts import RunInfo, Step, Target
from controlkit.errors import ParameterError
from controlkit.guidance.likelihood import BoundPhi, Likelihood, Phi, Sees

_PART = "(phi, y) or (phi, y, weight)"


@dataclass(frozen=True, eq=False)
class Total(Likelihood):
    """See `total`. Its parts have read their targets."""

    parts: tuple[tuple[Phi, Any, float], ...]
    sees: Sees
    channels: int | None

    def __call__(self, x: Tensor, y: Any, t: Tensor) -> Tensor:
        return torch.stack([weight * phi(x, own, t) for phi, own, weight in self.parts]).sum(0)

    def read(self, y: Any) -> None:
        if y is not None:
            raise ParameterError(
                "y", found=f"a {type(y).__name__}", expected="nothing: each part of the sum has its own"
            )

    def check(self, name: str, target: Target) -> None:
        for phi, _, _ in self.parts:
            if isinstance(phi, Likelihood):
                phi.check(name, target)

    def bind(self, name: str, y: Any, run: RunInfo) -> BoundPhi:
        def bound(number: int, phi: Phi, own: Any) -> BoundPhi:
            if isinstance(phi, Likelihood):
                return phi.bind(f"{name}: part {number}", own, run)
            return lambda seen, times, _step: phi(seen, own, times)

        parts = [(bound(number, phi, own), weight) for number, (phi, own, weight) in enumerate(self.parts, 1)]

        def sum_of(seen: Tensor, times: Tensor, step: Step) -> Tensor:
            return torch.stack([weight * phi(seen, times, step) for phi, weight in parts]).sum(0)

        return sum_of


def total(*parts: tuple[Any, ...], sees: Sees | None = None) -> Likelihood:
    """The weighted sum of functions that see the same, so that this (a decoding, say) is computed once.

    Several `Guidance` controls add up too, each with its own window, at the cost of one gradient each. The
    sum has no target of its own: ``ck.Guidance(total((edges(), map), (color(), "red", 0.5)))``.

    Args:
        parts: (phi, y) or (phi, y, weight): a function, its target, and a finite factor, 1 by default.
        sees: What all of them see; None: what the ready-made ones ask for, ``noisy`` if there are none.

    Raises:
        ParameterError: No parts, something else than parts, or parts that see different things.
    """
    if not parts:
        raise ParameterError("total", found="no parts", expected=f"at least one {_PART}")
    read: list[tuple[Phi, Any, float]] = []
    for number, part in enumerate(parts, 1):
        what = f"part {number}"
        if not isinstance(part, tuple | list) or len(part) not in (2, 3) or not callable(part[0]):
            raise ParameterError(what, found=f"{part!r:.60}", expected=_PART)
        weight = part[2] if len(part) == 3 else 1.0
        real = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not real or not math.isfinite(weight):
            raise ParameterError(f"{what}: weight", found=f"{weight!r:.60}", expected="a finite number")
        phi = cast(Phi, part[0])
        read.append((phi, phi.read(part[1]) if isinstance(phi, Likelihood) else part[1], float(weight)))
    made = [phi for phi, _, _ in read if isinstance(phi, Likelihood)]
    views: list[Sees] = list(dict.fromkeys(phi.sees for phi in made))
    if sees is None and len(views) > 1:
        raise ParameterError(
            "total",
            found=f"parts that see {' and '.join(views)}",
            expected="parts that see the same",
            fix="Attach a Guidance of its own for each.",
        )
    if sees not in (None, "noisy", "clean", "image"):
        raise ParameterError("sees", found=repr(sees), expected="'noisy', 'clean' or 'image'")
    channels = {phi.channels for phi in made} - {None}
    if len(channels) > 1:
        raise ParameterError(
            "total",
            found="parts that read " + " and ".join(map(str, sorted(channels, key=str))) + " channels",
            expected="parts that see the same",
        )
    common: Sees = sees or (views[0] if views else "noisy")
    return Total(tuple(read), common, next(iter(channels), None))
