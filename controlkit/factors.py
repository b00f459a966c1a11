"""What each thing that a control adds is multiplied by: mode and ``block_scales``, place by place."""

from __future__ import annotations

from typing import cast

import torch

from controlkit.contracts import Control, Target


def split_blocks(control: Control, target: Target) -> list[tuple[float, ...] | None]:
    """`block_scales` as (skips, mid, encoder, attention)."""
    given = len(control.strength.block_scales or ())
    skips = len(target.skip_channels) if "skips" in control.slots else 0
    mid = 1 if skips else 0
    attention = len(target.attention) if "attention" in control.slots else 0
    encoder = 0
    if "encoder" in control.slots:  # one per level, and one for the middle where the module has it
        rest = given - skips - mid - attention
        encoder = min(max(rest, len(target.levels)), len(target.encoder_channels))
    return control.strength.split_block_scales(skips, mid, encoder, attention)


class Weights:
    """What each residual of one control is multiplied by, for a given scale."""

    def __init__(self, control: Control, target: Target, *, weaken: bool) -> None:
        depth = len(target.skip_channels)
        positions = (*range(depth + 1), *target.encoder_positions)
        mode = control.strength.mode
        self._soft = torch.ones(len(positions))
        if mode == "prompt":
            self._soft = torch.tensor([0.825 ** (depth - p) for p in positions], dtype=torch.float64)
        elif mode == "control" and weaken:
            ladder = torch.logspace(-1, 0, depth + 1)
            self._soft = torch.stack([ladder[p] for p in positions])
        skips, mid, encoder, attention = split_blocks(control, target)
        self._attention = attention or (1.0,) * len(target.attention)
        ones = (1.0,) * len(positions)
        self._blocks = (
            *(skips or ones[:depth]),
            *(mid or ones[:1]),
            *((*(encoder or ()), *ones)[: len(target.encoder_positions)]),
        )
        self._depth = depth

    def at(self, scale: float) -> tuple[list[float], float, list[float]]:
        """Factors of the skips, of the middle, and of the encoder's features."""
        soft = cast(list[float], (self._soft * scale).tolist())  # pyright: ignore[reportUnknownMemberType]
        values = [value * block for value, block in zip(soft, self._blocks, strict=True)]
        return values[: self._depth], values[self._depth], values[self._depth + 1 :]

    def attention(self, scale: float) -> tuple[float, ...]:
        """Factors of the cross-attention layers."""
        return tuple(scale * block for block in self._attention)
