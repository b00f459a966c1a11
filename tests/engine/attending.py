"""Controls that add inside cross-attention, for tests: a tiny IP-Adapter's, and a stranger's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import controlkit as ck
from controlkit.contracts import Active, ExtraAttention, RunInfo, Target
from controlkit.strength import Strength
from tests.adapters.ip_adapter import peers


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter(pipe: Any, seed: int = 0) -> ck.IPAdapter:
    return peers.load(pipe.unet, "plain", seed)


def bound(pipe: Any, seed: int = 0, **options: Any) -> Any:
    return adapter(pipe, seed).on(draw(1, peers.PROJECTED, seed=seed), **options)


@dataclass(frozen=True, eq=False)
class Stranger:
    """A control that gives what it is told to."""

    extra: ExtraAttention
    strength: Strength = field(default_factory=Strength)
    name: str = "stranger"
    slots: frozenset[Any] = frozenset(("attention",))

    def check(self, target: Target) -> None:
        pass

    def prepare(self, run: RunInfo) -> Active:
        return Active(attention=lambda _: self.extra)
