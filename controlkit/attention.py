"""What controls add inside the cross-attention layers during one call of the U-Net.

The U-Net asks from within its layers, so unlike all else this is computed while it runs: the engine makes
one `ExtraAttentions` per call, with every factor and mask settled, and a host gives it each layer's queries.

Source:
    Ye et al. (2023), arXiv:2308.06721, equation 5; the order of operations is that of diffusers 0.42
    (``IPAdapterAttnProcessor2_0``), to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from controlkit.contracts import ExtraAttention, Step, Target
from controlkit.errors import BaseMismatch, NotApplicable


@dataclass(eq=False)
class Term:
    """One control's part in one call of the U-Net.

    Args:
        name: The control's.
        extra: Its keys and values, for all rows of the call.
        factors: For each layer, scale times ``block_scales``.
        mask: For a layer's stride, its region (1 or rows, pixels, 1) in [0, 1]; None for everywhere.
    """

    name: str
    extra: ExtraAttention
    factors: tuple[float, ...]
    mask: Callable[[int], Tensor | None]
    _norms: list[Tensor] = field(default_factory=list[Tensor], init=False)
    _count: int = field(default=0, init=False)

    def at(self, layer: int, stride: int, query: Tensor, heads: int) -> Tensor | None:
        """What it adds to one layer; None where its factor is 0."""
        self._count += query.numel()
        if not (factor := self.factors[layer]):
            return None
        rows, pixels, width = query.shape
        key, value = (
            part[layer].to(query).expand(rows, -1, -1).view(rows, -1, heads, width // heads).transpose(1, 2)
            for part in (self.extra.keys, self.extra.values)
        )
        split = query.view(rows, -1, heads, width // heads).transpose(1, 2)
        found = functional.scaled_dot_product_attention(split, key, value)
        found = found.transpose(1, 2).reshape(rows, pixels, width)
        if (mask := self.mask(stride)) is not None:
            if mask.shape[1] != pixels:
                raise NotApplicable(
                    f"{self.name}: mask",
                    found=f"a cross-attention layer with {pixels} queries",
                    expected=f"{mask.shape[1]}, one per pixel",
                    fix="Something merges or cuts this U-Net's pixels: switch it off, or give no mask.",
                )
            found = found * mask.to(query)
        added = factor * found
        norm = cast(Callable[..., Tensor], torch.linalg.vector_norm)  # pyright: ignore[reportUnknownMemberType]
        wide = torch.promote_types(added.dtype, torch.float32)
        self._norms.append(norm(added.detach(), dtype=wide).float())
        return added

    def rms(self) -> float:
        """Root mean square of everything that it added; waits for the device."""
        if not self._norms:
            return 0.0
        return float(torch.stack(self._norms).square().sum().sqrt()) / math.sqrt(self._count)


@dataclass(eq=False)
class ExtraAttentions:
    """What all controls add to the cross-attention layers during one call of the U-Net.

    Args:
        terms: One per control, in the order in which they are added.
        target: The U-Net.
    """

    terms: tuple[Term, ...]
    target: Target
    reached: set[int] = field(default_factory=set[int], init=False)

    def add(self, layer: int, result: Tensor, query: Tensor, heads: int) -> Tensor:
        """A layer's result with every control's attention added.

        Args:
            layer: Its number in `Target.attention`.
            result: (rows, pixels, width), the attention to the prompt, before its output projection.
            query: (rows, pixels, width), the layer's queries, all heads side by side.
            heads: Number of heads.
        """
        self.reached.add(layer)
        for term in self.terms:
            rows = term.extra.keys[layer].shape[0]
            if query.ndim != 3 or query.shape != result.shape or rows not in (1, query.shape[0]):
                raise NotApplicable(
                    term.name,
                    found=f"queries {tuple(query.shape)} and a result {tuple(result.shape)} in"
                    f" cross-attention layer {layer}",
                    expected=f"both ({rows}, pixels, {self.target.attention[layer].width})",
                    fix="This U-Net's attention processor is not one that extra attention can be added to.",
                )
            added = term.at(layer, self.target.attention[layer].stride, query, heads)
            if added is not None:
                result = result + added
        return result


def check_extra(name: str, extra: ExtraAttention, step: Step, target: Target) -> None:
    """Refuse keys and values that do not fit the U-Net's layers, before it runs.

    Raises:
        BaseMismatch: Their number, width or rows are others.
    """
    layers = target.attention
    if not len(extra.keys) == len(extra.values) == len(layers):
        raise BaseMismatch(
            name,
            found=f"keys of {len(extra.keys)} and values of {len(extra.values)} cross-attention layers",
            expected=f"{len(layers)} for {target.describe()}",
            fix="Use a module that was made for this base model.",
        )
    rows = step.latents.shape[0]
    for index, (key, value, layer) in enumerate(zip(extra.keys, extra.values, layers, strict=True)):
        fits = key.ndim == 3 and key.shape == value.shape and key.shape[0] in (1, rows) and key.shape[1] > 0
        if not fits or key.shape[2] != layer.width:
            raise BaseMismatch(
                name,
                found=f"keys {tuple(key.shape)} and values {tuple(value.shape)}"
                f" (cross-attention layer {index})",
                expected=f"({rows}, n, {layer.width}) for {target.describe()}",
                fix="Use a module that was made for this base model.",
            )
