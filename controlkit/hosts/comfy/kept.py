"""What was added to the calls of the U-Net, conditioning by conditioning, so that a call can be run again.

Guidance with its gradient through the U-Net runs the conditional half once more; what controls added to it
stays as it was. ComfyUI may have run that half with others in one call, in another order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from controlkit.attention import ExtraAttentions, Term
from controlkit.contracts import ExtraAttention, Residuals
from controlkit.hosts.rows import cut, cut_attention, cut_residuals

REPLAY = "controlkit_replay"
"""Set in ``transformer_options`` while a call is run again for a gradient: what was added stays as it was."""


@dataclass(frozen=True, eq=False)
class Added:
    """What one control added to a call.

    Args:
        residuals: Scaled; empty where there are none.
        tokens: (rows, n, dim), those after the tokens that were given; None where there are none.
        attention: What cross-attention attended to beside the prompt.
    """

    residuals: Residuals = dataclasses.field(default_factory=Residuals)
    tokens: Tensor | None = None
    attention: ExtraAttentions | None = None


class Kept:
    """What one control added to each conditioning when it was last run."""

    def __init__(self) -> None:
        self._parts: dict[Any, Added] = {}

    def keep(self, names: Sequence[Any], added: Added, rows: int) -> None:
        """Remember a call.

        Args:
            names: One per conditioning in it, as ComfyUI's ``uuids``.
            added: To all of them.
            rows: Of the call; they fall into equal parts, one per conditioning.
        """
        size = rows // len(names)
        for i, name in enumerate(names):
            self._parts[name] = _part(added, slice(size * i, size * (i + 1)), rows)

    def again(self, names: Sequence[Any]) -> Added:
        """What was added to these, one after the other; zeros where one of them had nothing."""
        parts = [self._parts.get(name, Added()) for name in names]
        if len(parts) == 1:
            return parts[0]
        tokens = [part.tokens for part in parts if part.tokens is not None]
        attention = [part.attention for part in parts if part.attention is not None]
        return Added(
            _joined([part.residuals for part in parts]),
            torch.cat(tokens) if tokens else None,
            _joined_attention(attention) if attention else None,
        )

    def clear(self) -> None:
        """Forget all of it."""
        self._parts = {}


def _part(added: Added, rows: slice, of: int) -> Added:
    """What was added to the rows of one conditioning, in a call of ``of`` rows."""
    return Added(
        cut_residuals(added.residuals, rows, of),
        None if added.tokens is None else cut(added.tokens, rows, of),
        cut_attention(added.attention, rows, of),
    )


def _joined(parts: list[Residuals]) -> Residuals:
    full = next((part for part in parts if part), None)
    if full is None:
        return parts[0]
    zeros = Residuals(
        tuple(map(torch.zeros_like, full.skips)),
        None if full.mid is None else torch.zeros_like(full.mid),
        tuple(map(torch.zeros_like, full.encoder)),
    )
    whole = [part if part else zeros for part in parts]
    mids = [part.mid for part in whole if part.mid is not None]
    return Residuals(
        tuple(torch.cat(same) for same in zip(*[part.skips for part in whole], strict=True)),
        torch.cat(mids) if mids else None,
        tuple(torch.cat(same) for same in zip(*[part.encoder for part in whole], strict=True)),
    )


def _joined_attention(parts: list[ExtraAttentions]) -> ExtraAttentions:
    def term(same: tuple[Term, ...]) -> Term:
        def cat(which: str) -> tuple[Tensor, ...]:
            return tuple(map(torch.cat, zip(*[getattr(part.extra, which) for part in same], strict=True)))

        def mask(stride: int) -> Tensor | None:
            regions = [part.mask(stride) for part in same]
            first = regions[0]
            if first is None or all(region is first for region in regions):
                return first
            rows = [part.extra.keys[0].shape[0] for part in same]
            return torch.cat(
                [r.expand(n, -1, -1) for r, n in zip(regions, rows, strict=True) if r is not None]
            )

        return dataclasses.replace(same[0], extra=ExtraAttention(cat("keys"), cat("values")), mask=mask)

    terms = zip(*[part.terms for part in parts], strict=True)
    return ExtraAttentions(tuple(map(term, terms)), parts[0].target)
