"""What a style adapter does during a run: its tokens computed once, put after the prompt's where it acts.

The network is in `model.py`; scale and window belong to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from controlkit.adapters.style_adapter.model import StyleAdapter
from controlkit.binding import Borrowed, name_of, refuse_meta, spread
from controlkit.contracts import Active, RunInfo, Slot, Step, Target
from controlkit.errors import BaseMismatch, BatchMismatch
from controlkit.strength import Strength


@dataclass(frozen=True, eq=False)
class StyleAdapterControl:
    """A style adapter bound to what an image encoder said of pictures, (n, tokens, width).

    Costs one forward of its network per run, and a few more tokens in every cross-attention.
    """

    module: StyleAdapter
    clip_tokens: Tensor
    strength: Strength

    @property
    def name(self) -> str:
        return name_of(self.module)

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(("tokens",))

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        width = self.module.config.context_dim
        if width != target.token_dim:
            raise BaseMismatch(
                self.name,
                found=f"a style adapter for {self.module.base} (tokens {width} wide)",
                expected=f"one for {target.describe()}",
                fix="Use the adapter made for this base model, or the base model it was made for.",
            )

    def prepare(self, run: RunInfo) -> Active:
        pictures = len(self.clip_tokens)
        if run.images % pictures:
            raise BatchMismatch(
                f"{self.name}: image",
                found=f"{pictures} for {run.images} pictures",
                expected=f"one, or a number that divides {run.images}: one per prompt or per picture",
                fix="Give one for all, or a list with one entry per prompt.",
                code="CK-H20",
            )
        borrowed = Borrowed(self.module, run)
        counts = {"forward": 0}
        made: list[Tensor] = []

        def tokens(step: Step) -> Tensor:
            if not made:
                borrowed.ready()
                counts["forward"] += 1
                made.append(self.module(self.clip_tokens.to(run.device, borrowed.dtype)))
                borrowed.back()
            return spread(made[0], step)

        return Active(
            tokens=tokens,
            tokens_cond_only=True,
            notes=borrowed.notes(),
            counts=counts,
            close=borrowed.back,
        )
