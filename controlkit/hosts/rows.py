"""Some rows of a call of the U-Net: what controls added to them alone, so that they can be run again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from controlkit.attention import ExtraAttentions, Term
from controlkit.contracts import ExtraAttention, Residuals


def cut(tensor: Tensor, rows: slice, of: int) -> Tensor:
    """The rows of a tensor that has one per row of the call; one row that is for all stays one.

    Args:
        tensor: (of or 1, …).
        rows: Which of the call's.
        of: How many the call had.
    """
    return tensor[rows] if tensor.shape[0] == of else tensor


def cut_residuals(residuals: Residuals, rows: slice, of: int) -> Residuals:
    """What was added to some rows of a call of ``of`` rows."""
    return Residuals(
        tuple(cut(skip, rows, of) for skip in residuals.skips),
        None if residuals.mid is None else cut(residuals.mid, rows, of),
        tuple(cut(feature, rows, of) for feature in residuals.encoder),
    )


def cut_attention(extra: ExtraAttentions | None, rows: slice, of: int) -> ExtraAttentions | None:
    """What some rows of a call of ``of`` rows attended to beside the prompt; None where there was nothing."""

    def each(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.expand(of, -1, -1)[rows] for tensor in tensors)

    def masked(mask: Callable[[int], Tensor | None]) -> Callable[[int], Tensor | None]:
        def at(stride: int) -> Tensor | None:
            region = mask(stride)
            return None if region is None else cut(region, rows, of)

        return at

    def term(whole: Term) -> Term:
        keys, values = each(whole.extra.keys), each(whole.extra.values)
        return dataclasses.replace(whole, extra=ExtraAttention(keys, values), mask=masked(whole.mask))

    return None if extra is None else ExtraAttentions(tuple(map(term, extra.terms)), extra.target)
