"""Which step is this? Answered from a diffusers scheduler, or from a count of steps.

A call of the U-Net is matched to an entry of ``scheduler.timesteps``; second-order schedulers list two
entries per step, so each call is an entry of its own, as in diffusers' pipelines. A loop that calls the
U-Net twice for one entry (classifier-free guidance half by half) stays on that entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from controlkit.errors import ParameterError, StateError


@dataclass(frozen=True)
class Tick:
    """One call of the U-Net in time.

    Args:
        index: 0-based step of this run.
        count: Steps of this run; 1 where nothing is known.
        fresh: Whether a new run begins with this call.
        alpha_bar: ᾱ_t in (0, 1), or None where the scheduler does not tell.
    """

    index: int
    count: int
    fresh: bool
    alpha_bar: float | None


class SchedulerClock:
    """Reads a diffusers scheduler; never changes it."""

    def __init__(self) -> None:
        self._schedule: Tensor | None = None  # kept alive, so that identity means sameness
        self._values: list[float] = []
        self._begin = 0
        self._entry = -1
        self._latents: Tensor | None = None

    def tick(self, scheduler: Any, timestep: Tensor | float, latents: Tensor, run_steps: int | None) -> Tick:
        """Read the clock at one call of the U-Net.

        Args:
            scheduler: The pipeline's scheduler, with ``timesteps`` set.
            timestep: What the U-Net was given.
            latents: The noisy latents it was given.
            run_steps: Steps that the pipeline says it runs, where it says so.

        Raises:
            StateError: The scheduler's steps were replaced while a run was under way.
        """
        schedule: Tensor = scheduler.timesteps
        replaced = schedule is not self._schedule
        unfinished = 0 <= self._entry < self._begin + self._count(run_steps) - 1
        expected = self._values[self._entry + 1] if unfinished else None
        if replaced:
            self._schedule = schedule
            values = cast(list[float], schedule.tolist())  # pyright: ignore[reportUnknownMemberType]
            self._values = list(map(float, values))
        entry = self._find(scheduler, timestep, latents, replaced)
        if entry is None:
            raise StateError(
                "scheduler",
                found=f"timestep {_first(timestep):g}, none of the scheduler's {len(self._values)}",
                expected="the timesteps that this run began with",
                fix="Do not call set_timesteps or swap the scheduler while the pipeline runs.",
                code="CK-R8",
            )
        midway = entry > 0 and _first(timestep) == expected and not _begins(scheduler)
        if replaced and unfinished and midway:
            raise StateError(
                "scheduler",
                found="other timesteps than this run began with",
                expected="the same until the run ends",
                fix="Do not call set_timesteps while the pipeline runs.",
                code="CK-R8",
            )
        fresh = replaced or entry < self._entry
        if fresh:
            self._begin = entry
        self._entry, self._latents = entry, latents
        count = self._count(run_steps)
        return Tick(entry - self._begin, count, fresh, alpha_bar(scheduler, entry, timestep))

    def _count(self, run_steps: int | None) -> int:
        left = len(self._values) - self._begin
        return run_steps if run_steps is not None and 0 < run_steps <= left else left

    def _find(self, scheduler: Any, timestep: Tensor | float, latents: Tensor, replaced: bool) -> int | None:
        index = getattr(scheduler, "step_index", None)
        if index is not None:
            return int(index) if index < len(self._values) else None
        begin = _begins(scheduler)
        if begin:
            return int(begin)
        value = _first(timestep)
        entries = [i for i, candidate in enumerate(self._values) if candidate == value]
        if not entries or replaced:
            return entries[0] if entries else None
        repeated = self._latents is not None and _same(self._latents, latents)
        later = [i for i in entries if i > self._entry or (i == self._entry and repeated)]
        return later[0] if later else entries[0] if len(entries) > 1 else entries[-1]


class CountingClock:
    """For a loop of one's own of which only the number of steps is known, or not even that."""

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self._last: float | None = None
        self._index = 0

    def tick(self, timestep: Tensor | float) -> Tick:
        """Read the clock: a lower timestep is the next step, a higher one the beginning of a new run.

        Raises:
            ParameterError: More steps than announced.
        """
        if self._steps is None:
            fresh, self._last = self._last is None, 0.0
            return Tick(0, 1, fresh, None)
        value = _first(timestep)
        fresh = self._last is None or value > self._last
        self._index = 0 if fresh else self._index + (value != self._last)
        self._last = value
        if self._index >= self._steps:
            raise ParameterError(
                "num_steps",
                found=f"a step number {self._index + 1}",
                expected=f"at most {self._steps}, as given to attach",
                fix="Give attach the number of steps your loop runs, or its scheduler.",
                code="CK-P8",
            )
        return Tick(self._index, self._steps, fresh, None)


def alpha_bar(scheduler: Any, entry: int, timestep: Tensor | float) -> float | None:
    """ᾱ_t of an entry: from sigma where the scheduler has it (ᾱ = 1 / (1 + sigma²)), else from its table.

    In both cases the U-Net sees the variance-preserving x_t, so one number describes all schedulers.
    """
    config = getattr(scheduler, "config", {})
    flow = config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction"
    if flow or "EDM" in type(scheduler).__name__ or "Flow" in type(scheduler).__name__:
        return None
    sigmas = getattr(scheduler, "sigmas", None)
    between = getattr(scheduler, "sigmas_interpol", None)
    if between is not None and not scheduler.state_in_first_order:
        sigmas = between
    if isinstance(sigmas, Tensor) and entry < len(sigmas):
        return 1.0 / (1.0 + float(sigmas[entry]) ** 2)
    table = getattr(scheduler, "alphas_cumprod", None)
    value = _first(timestep)
    if isinstance(table, Tensor) and value == int(value) and 0 <= value < len(table):
        return float(table[int(value)])
    return None


def _begins(scheduler: Any) -> int:
    return getattr(scheduler, "begin_index", None) or 0


def _first(timestep: Tensor | float) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)
