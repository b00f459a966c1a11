"""How strongly a control acts, and when: one description for every kind, applied by the engine.

Window rule (diffusers' own, ``controlnet_keep`` in its ControlNet pipelines): step ``i`` of ``n`` is inside
the window when ``i / n >= start`` and ``(i + 1) / n <= end``. The scale of a step is taken at the fraction
of the run that is done when the step begins, ``i / n``. ``n`` counts the steps that this call runs: for
image-to-image what is left after ``strength``; a second-order scheduler's two calls are two steps, as in
diffusers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from controlkit.errors import BatchMismatch, ParameterError

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["balanced", "prompt", "control"]
Scale = float | Callable[[float], float] | Sequence[tuple[float, float]]

LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class Strength:
    """Scale, window, mode, per-block factors and region of one control.

    Args:
        scale: A number; a function of the fraction done in [0, 1]; or points ``(fraction, scale)``,
            interpolated linearly and held beyond the first and last. 0 is off, 1 as trained. Negative
            scales push away from the map.
        start: Beginning of the window, in [0, 1).
        end: End of the window, in (start, 1].
        mode: ``balanced``: both halves of classifier-free guidance. ``prompt``: both halves, each residual
            weakened by 0.825 to the power of its distance from the middle block (the soft weights of
            ControlNet's web UIs). ``control``: the conditional half only, residuals weakened from the
            middle outwards down to a tenth on a logarithmic scale (diffusers' ``guess_mode``).
        block_scales: One factor per residual, in the U-Net's order, middle last; None for all 1.
        mask: Region, (1 or images, 1, H, W) in [0, 1] at any size; None for everywhere.
        every: Act on every k-th step of the window only.
        largest: Greatest absolute scale that is taken for meant.

    Raises:
        ParameterError: A value out of its range; the message says which and why.
    """

    scale: Scale = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: Mode = "balanced"
    block_scales: tuple[float, ...] | None = None
    mask: Tensor | None = field(default=None, compare=False)
    every: int = 1
    largest: float = LARGEST_SCALE

    def __post_init__(self) -> None:
        start = _number("start", self.start, "a number in [0, 1)")
        end = _number("end", self.end, "a number in (0, 1]")
        if not 0.0 <= start < 1.0 or not 0.0 < end <= 1.0 or start >= end:
            raise ParameterError(
                "start and end",
                found=f"start={start:g}, end={end:g}",
                expected="0 <= start < end <= 1, as fractions of the run",
                fix="For the first half of the steps give start=0, end=0.5.",
                code="CK-P5",
            )
        if self.mode not in get_args(Mode):
            raise ParameterError(
                "mode",
                found=repr(self.mode),
                expected=" or ".join(map(repr, get_args(Mode))),
                fix="diffusers' guess_mode=True is mode='control'.",
            )
        every = cast(object, self.every)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ParameterError("every", found=repr(self.every), expected="a whole number from 1")
        if not callable(self.scale):
            points = _points(self.scale)
            if points is None:
                _scale(self.scale, self.largest)
            else:
                for _, value in points:
                    _scale(value, self.largest)
                object.__setattr__(self, "scale", points)
        if self.block_scales is not None:
            factors = tuple(
                _number(f"block_scales[{i}]", value, "a finite number")
                for i, value in enumerate(self.block_scales)
            )
            object.__setattr__(self, "block_scales", factors)

    @property
    def is_constant(self) -> bool:
        """Whether every step gets the same scale, so that the number of steps need not be known."""
        always = self.start == 0.0 and self.end == 1.0 and self.every == 1
        return always and self.is_constant_scale

    @property
    def is_constant_scale(self) -> bool:
        """Whether every step that acts gets the same scale."""
        return not callable(self.scale) and not isinstance(self.scale, Sequence)

    def plan(self, count: int) -> tuple[float, ...]:
        """The scale of each of ``count`` steps; 0.0 where the control does not act.

        Raises:
            ParameterError: A scale function returned something else than a finite number in range.
        """
        inside = [i for i in range(count) if i / count >= self.start and (i + 1) / count <= self.end]
        acting = frozenset(inside[:: self.every])
        return tuple(self.at(i / count) if i in acting else 0.0 for i in range(count))

    def at(self, progress: float) -> float:
        """The scale at a fraction of the run in [0, 1], whatever the window."""
        if callable(self.scale):
            return _scale(self.scale(progress), self.largest, f"scale({progress:g})")
        points = _points(self.scale)
        if points is None:
            return float(self.scale)  # type: ignore[arg-type]
        return _interpolate(points, progress)

    def split_block_scales(self, *counts: int) -> list[tuple[float, ...] | None]:
        """``block_scales`` cut into consecutive parts of the given lengths.

        Raises:
            BatchMismatch: The number of factors is not the number of residuals.
        """
        if self.block_scales is None:
            return [None] * len(counts)
        if len(self.block_scales) != sum(counts):
            raise BatchMismatch(
                "block_scales",
                found=f"{len(self.block_scales)} factors",
                expected=f"{sum(counts)}, one per residual in the U-Net's order, middle last",
                fix="Give one factor for each, 1.0 to leave a residual as it is.",
            )
        parts: list[tuple[float, ...] | None] = []
        at = 0
        for count in counts:
            parts.append(self.block_scales[at : at + count])
            at += count
        return parts


def _number(name: str, value: object, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ParameterError(name, found=repr(value), expected=expected, code="CK-P3")
    return float(value)


def _scale(value: object, largest: float, name: str = "scale") -> float:
    if getattr(value, "ndim", 1) == 0:  # a number of numpy or torch
        value = cast(Any, value).item()
    number = _number(name, value, "a finite number, a function of progress, or (progress, scale) points")
    if abs(number) > largest:
        raise ParameterError(
            name,
            found=f"{number:g}",
            expected=f"between {-largest:g} and {largest:g}",
            fix="1 is as trained; useful scales lie between 0 and 2.",
            code="CK-P3",
        )
    return number


def _points(scale: object) -> tuple[tuple[float, float], ...] | None:
    if not isinstance(scale, Sequence) or isinstance(scale, str | bytes):
        return None
    points: list[tuple[float, float]] = []
    for entry in cast(Sequence[object], scale):
        is_pair = isinstance(entry, Sequence) and not isinstance(entry, str | bytes)
        if not is_pair or _length(cast(object, entry)) != 2:
            raise ParameterError(
                "scale",
                found=f"a list with {entry!r} in it",
                expected="(fraction, scale) points such as [(0, 1.0), (0.5, 0.2)]",
                fix="For one scale per control, give each control its own scale=.",
                code="CK-P7",
            )
        pair = [_number("scale", n, "points of two numbers") for n in cast(Sequence[object], entry)]
        points.append((pair[0], pair[1]))
    fractions = [fraction for fraction, _ in points]
    if not points or fractions != sorted(fractions) or fractions[0] < 0 or fractions[-1] > 1:
        raise ParameterError(
            "scale",
            found=f"points at {fractions}",
            expected="at least one point, fractions rising within [0, 1]",
        )
    return tuple(points)


def _length(entry: object) -> int:
    return len(cast(Sequence[object], entry))


def _interpolate(points: tuple[tuple[float, float], ...], at: float) -> float:
    if at <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if at <= right:
            return high if right == left else low + (high - low) * (at - left) / (right - left)
    return points[-1][1]
