"""A kind of control without weights: lifts the encoder's features where its map is bright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.nn import functional

from controlkit import Active, Residuals, RunInfo, Step, Strength, Target
from controlkit.contracts import Slot
from controlkit.images import as_map


class Brighten:
    """What the entry point names: called without arguments, it gives something with ``on``."""

    def on(self, image: Any, *, amount: float = 0.1, **strength: Any) -> BrightenControl:
        """Bind to a map.

        Args:
            image: As for every control; its brightness counts.
            amount: What white adds to the features.
            **strength: ``scale``, ``start``, ``end``, ``mode``, ``mask``.
        """
        return BrightenControl(image, amount, Strength(**strength))


@dataclass(frozen=True, eq=False)
class BrightenControl:
    """The five members of `controlkit.Control`: name, strength, slots, check, prepare."""

    image: Any
    amount: float
    strength: Strength
    name: str = "brighten"
    slots: frozenset[Slot] = frozenset({"encoder"})

    def check(self, target: Target) -> None:
        """Nothing to refuse: it fits every U-Net that takes encoder features."""

    def prepare(self, run: RunInfo) -> Active:
        """Once per run: the map at the size of every level of the encoder."""
        brightness = as_map(self.image, channels=1)
        brightness = brightness.to(run.device, run.dtype) * self.amount
        levels = [
            functional.interpolate(brightness, (run.height // stride, run.width // stride), mode="area")
            for stride in run.target.encoder_strides
        ]

        def residuals(step: Step) -> Residuals:
            rows = step.latents.shape[0]
            sizes = zip(levels, run.target.encoder_channels, strict=True)
            return Residuals(encoder=tuple(level.expand(rows, channels, -1, -1) for level, channels in sizes))

        return Active(residuals=residuals, notes=("brightness of the map, once per run",))
