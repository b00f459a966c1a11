"""A control that a stranger might write, for tests: it remembers the steps it saw."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from controlkit.contracts import Active, ExtraAttention, Residuals, RunInfo, Step, Target
from controlkit.strength import Strength


@dataclass(frozen=True, eq=False)
class Probe:
    """A stranger's control: adds constants wherever it is told to, and remembers the steps it saw."""

    slots: frozenset[Any] = frozenset(("skips", "mid"))
    strength: Strength = field(default_factory=Strength)
    name: str = "probe"
    steps: list[Step] = field(default_factory=list[Step])
    targets: list[Target] = field(default_factory=list[Target])

    def check(self, target: Target) -> None:
        self.targets.append(target)

    def prepare(self, run: RunInfo) -> Active:
        target = run.target

        def residuals(step: Step) -> Residuals:
            self.steps.append(step)
            rows = step.latents.shape[0]

            def full(channels: int, stride: int) -> Tensor:
                size = (math.ceil(run.height / stride), math.ceil(run.width / stride))
                return torch.full((rows, channels, *size), 0.1, dtype=run.dtype)

            skips: tuple[Tensor, ...] = ()
            mid = None
            if "skips" in self.slots:
                skips = tuple(map(full, target.skip_channels, target.skip_strides))
                mid = full(target.mid_channels, target.skip_strides[-1])
            encoder: tuple[Tensor, ...] = ()
            if "encoder" in self.slots:
                encoder = tuple(map(full, target.encoder_channels, target.encoder_strides))
            return Residuals(skips, mid, encoder)

        def tokens(step: Step) -> Tensor:
            self.steps.append(step)
            assert target.token_dim is not None
            return torch.ones(step.latents.shape[0], 4, target.token_dim, dtype=run.dtype)

        def attention(step: Step) -> ExtraAttention:
            self.steps.append(step)
            rows = step.latents.shape[0]
            full = [torch.ones(rows, 2, layer.width, dtype=run.dtype) for layer in target.attention]
            return ExtraAttention(tuple(full), tuple(full))

        adds = self.slots & {"skips", "encoder"}
        return Active(
            residuals=residuals if adds else None,
            tokens=tokens if "tokens" in self.slots else None,
            attention=attention if "attention" in self.slots else None,
            shift=(lambda noise, _: torch.full_like(noise, 0.1)) if "noise" in self.slots else None,
        )
