"""What an IP-Adapter does during a run: keys and values made once, attended to at every step that acts.

The network is in `model.py`; scale, window, mode and region belong to the engine, and the attention itself
happens inside the U-Net's layers (`controlkit.attention`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from controlkit.adapters.ip_adapter.images import BoundImages
from controlkit.adapters.ip_adapter.model import IPAdapter
from controlkit.binding import Borrowed, name_of, refuse_meta
from controlkit.contracts import Active, Branch, ExtraAttention, RunInfo, Slot, Step, Target
from controlkit.errors import BaseMismatch, BatchMismatch
from controlkit.strength import Strength

_Layers = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class IPAdapterControl:
    """An IP-Adapter bound to its pictures. Adds to every cross-attention; reads neither latents nor prompt.

    Per run it costs one forward of its network, for the pictures and the unconditional embedding together;
    per acting step a second attention to a few tokens in each layer.
    """

    module: IPAdapter
    images: BoundImages
    strength: Strength

    @property
    def name(self) -> str:
        return name_of(self.module)

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(("attention",))

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        dim, widths = self.module.config.cross_attention_dim, self.module.widths
        ours = [(width, dim) for width in widths]
        theirs = [(layer.width, layer.token_dim) for layer in target.attention]
        if ours != theirs:
            number = f"{len(widths)} cross-attention layers {_span(widths)} wide"
            needed = f"{len(theirs)} layers {_span([width for width, _ in theirs])} wide"
            raise BaseMismatch(
                self.name,
                found=f"an IP-Adapter for {self.module.base} (tokens {dim} wide, {number})",
                expected=f"one for {target.describe()} with {needed}",
                fix="Use the adapter made for this base model, or the base model it was made for.",
            )

    def prepare(self, run: RunInfo) -> Active:
        prompts = len(self.images.embedding)
        if run.images % prompts:
            raise BatchMismatch(
                f"{self.name}: image",
                found=f"pictures for {prompts} prompts, and {run.images} pictures to make",
                expected=f"one, or a number that divides {run.images}: one per prompt or per picture made",
                fix="Give one picture for all, or a list with one entry per prompt; several for one prompt"
                " are a list in that list.",
                code="CK-H20",
            )
        borrowed = Borrowed(self.module, run)
        counts = {"forward": 0}
        made: dict[bool, _Layers] = {}
        spread: dict[tuple[Branch, ...], ExtraAttention] = {}

        def make(kinds: list[bool]) -> None:
            """Keys and values of the unconditional embedding (False) and of the pictures (True)."""
            borrowed.ready()
            counts["forward"] += 1
            given = [self.images.embedding if kind else self.images.unconditional for kind in kinds]
            rows = torch.cat([part.flatten(0, 1) for part in given]).to(run.device, borrowed.dtype)
            tokens = self.module.tokens(rows).unflatten(0, (-1, given[0].shape[1])).flatten(1, 2)
            keys, values = (
                [layer.split([len(part) for part in given]) for layer in layers]
                for layers in self.module.keys_values(tokens)
            )
            for i, kind in enumerate(kinds):
                made[kind] = tuple(key[i] for key in keys), tuple(value[i] for value in values)
            borrowed.back()

        def attention(step: Step) -> ExtraAttention:
            if step.branches not in spread:
                kinds = [branch in ("cond", "perturbed") for branch in step.branches]
                if new := sorted({*kinds} - {*made}):
                    make(new)
                keys, values = (
                    tuple(_rows(part, step.images) for part in zip(*(made[k][i] for k in kinds), strict=True))
                    for i in (0, 1)
                )
                spread[step.branches] = ExtraAttention(keys, values)
            return spread[step.branches]

        return Active(
            attention=attention,
            notes=(*self.images.notes, *borrowed.notes()),
            counts=counts,
            close=borrowed.back,
        )


def _rows(branches: tuple[Tensor, ...], images: int) -> Tensor:
    """Branches (prompts, n, width) as one tensor with a row for each row of the step, or one for all."""
    if len(branches) == 1 and branches[0].shape[0] == 1:
        return branches[0]
    return torch.cat([part.repeat_interleave(images // part.shape[0], dim=0) for part in branches])


def _span(widths: list[int] | tuple[int, ...]) -> str:
    return f"{min(widths)} to {max(widths)}" if len(set(widths)) > 1 else ", ".join(map(str, set(widths)))
