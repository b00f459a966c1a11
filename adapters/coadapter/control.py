"""What a CoAdapter fuser does during a run: its members' features weighed, fused, and added as one.

The network is in `model.py`. Members come in as bound controls and are asked by the contract that every
control keeps, so that this folder knows no adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from controlkit.adapters.coadapter.model import TASKS, CoAdapterFuser
from controlkit.binding import Borrowed, make_strength, name_of, refuse_meta
from controlkit.contracts import Active, Control, Residuals, RunInfo, Slot, Step, Target
from controlkit.errors import BaseMismatch, ParameterError
from controlkit.factors import Weights
from controlkit.residuals import select
from controlkit.strength import Scale, Strength

_KINDS = {name: "style-adapter" if name == "style" else "t2i-adapter" for name in TASKS}


@dataclass(frozen=True, eq=False)
class CoAdapterControl:
    """A fuser bound to bound adapters. Adds inside the encoder, and tokens where there is a style.

    Costs, beside its members, one forward of the fuser per run and for each change of their weights.
    """

    module: CoAdapterFuser
    members: Mapping[str, Control]
    strength: Strength

    @property
    def name(self) -> str:
        return f"{name_of(self.module)} ({', '.join(self.members)})"

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(slot for member in self.members.values() for slot in member.slots)

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        config = self.module.config
        levels = target.encoder_channels[:-1]
        if config.unet_channels != levels or ("tokens" in self.slots and config.width != target.token_dim):
            ours = "/".join(map(str, config.unet_channels))
            raise BaseMismatch(
                self.name,
                found=f"a fuser for {self.module.base} (tokens {config.width} wide, levels {ours})",
                expected=f"one for {target.describe()}",
                fix="Use the fuser made for this base model, or the base model it was made for.",
            )
        for member in self.members.values():
            member.check(target)

    def prepare(self, run: RunInfo) -> Active:
        return _Fusing(self, run).active()


class _Fusing:
    """One run."""

    def __init__(self, control: CoAdapterControl, run: RunInfo) -> None:
        self._net = control.module
        self._borrowed = Borrowed(control.module, run)
        self._active: dict[str, Active] = {}
        self._plans = {name: member.strength.plan(run.steps) for name, member in control.members.items()}
        self._weights = {
            name: Weights(member, run.target, weaken=True) for name, member in control.members.items()
        }
        self._slots = control.slots
        self._counts = {"forward": 0}
        self._made: tuple[tuple[float, ...], tuple[Tensor, ...], Tensor | None] | None = None
        self._width = control.module.config.width
        with ExitStack() as undo:  # if one cannot be prepared, the others end too
            undo.callback(self._close)
            for name, member in control.members.items():
                self._active[name] = member.prepare(run)
            undo.pop_all()

    def active(self) -> Active:
        notes = [f"{name}: {note}" for name, active in self._active.items() for note in active.notes]
        for name, plan in self._plans.items():
            acting = sum(map(bool, plan))
            if acting < len(plan):
                notes.append(f"{name}: acts on {acting} of {len(plan)} steps")
        return Active(
            tokens=self._tokens if "tokens" in self._slots else None,
            residuals=self._residuals if "encoder" in self._slots else None,
            tokens_cond_only=True,
            notes=(*notes, *self._borrowed.notes()),
            counts=self._counts,
            close=self._close,
        )

    def _residuals(self, step: Step) -> Residuals:
        maps, _ = self._fused(step)
        return Residuals(encoder=tuple(_per_branch(level, step) for level in maps))

    def _tokens(self, step: Step) -> Tensor:
        _, tokens = self._fused(step)
        if tokens is None:  # the style does not act in this step
            return step.latents.new_zeros(1, 0, self._width)
        return _per_branch(tokens, step)

    def _fused(self, step: Step) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """What is added for one branch: rows are 1 or one per picture. Kept while the weights stay."""
        scales = tuple(plan[step.index] for plan in self._plans.values())
        if self._made is None or self._made[0] != scales:
            self._made = (scales, *self._fuse(select(step, step.branches[:1]), scales))
        return self._made[1:]

    def _fuse(self, step: Step, scales: tuple[float, ...]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        features: dict[str, list[Tensor] | Tensor] = {}
        for (name, active), scale in zip(self._active.items(), scales, strict=True):
            if not scale:
                continue
            if active.tokens is not None:
                features[name] = active.tokens(step) * scale
            elif active.residuals is not None:
                factors = self._weights[name].at(scale)[2]
                levels = active.residuals(step).encoder
                features[name] = [level * factor for level, factor in zip(levels, factors, strict=False)]
        if not features:
            return (), None
        self._borrowed.ready()
        dtype = self._borrowed.dtype
        batch = max(_rows(feature) for feature in features.values())

        def ready(tensor: Tensor) -> Tensor:
            return tensor.to(dtype).expand(batch, *[-1] * (tensor.ndim - 1))

        self._counts["forward"] += 1
        maps, tokens = self._net(
            {
                name: ready(feature) if isinstance(feature, Tensor) else [ready(level) for level in feature]
                for name, feature in features.items()
            }
        )
        self._borrowed.back()
        return maps or (), tokens

    def _close(self) -> None:
        with ExitStack() as closing:
            closing.callback(self._borrowed.back)
            for active in self._active.values():
                if active.close is not None:
                    closing.callback(active.close)


@dataclass(frozen=True)
class _Always:
    """A scale that is the same at every step, as a function: because of the members, the steps matter."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


def whole_strength(members: Mapping[str, Control], scale: Scale, start: float, end: float) -> Strength:
    """The strength of the whole; it says that steps must be known where a member's strength needs them.

    Raises:
        ParameterError: A value out of its range.
    """
    strength = make_strength(scale, start, end, "balanced", None, None)
    if strength.is_constant and not all(member.strength.is_constant for member in members.values()):
        value: Any = strength.scale
        return make_strength(_Always(float(value)), start, end, "balanced", None, None)
    return strength


def check_members(members: Mapping[str, Control]) -> None:
    """Refuse what the fuser cannot fuse.

    Raises:
        ParameterError: Naming the member.
    """
    if not isinstance(members, Mapping) or not members:
        raise ParameterError(
            "members",
            found="none" if isinstance(members, Mapping) else f"a {type(members).__name__}",
            expected='bound adapters by condition, such as {"canny": canny.on(edges)}',
        )
    for name, member in members.items():
        what = f"members[{name!r}]"
        if name not in TASKS:
            raise ParameterError(what, found="a condition it does not know", expected=" or ".join(TASKS))
        kind = getattr(getattr(member, "module", None), "kind", None) or type(member).__name__
        if kind != _KINDS[name]:
            raise ParameterError(
                what,
                found=f"a {kind}",
                expected=f"a {_KINDS[name]} that is bound, as its on(...) gives it",
                fix="Attach other controls beside the fuser.",
            )
        if member.strength.mask is not None or member.strength.mode == "control":
            raise ParameterError(
                what,
                found="a mask" if member.strength.mask is not None else "mode='control'",
                expected="none, and mode 'balanced' or 'prompt'",
                fix="The fuser weighs whole pictures, the same for both halves of classifier-free guidance."
                " Attach this adapter beside the fuser.",
            )


def _rows(feature: list[Tensor] | Tensor) -> int:
    return (feature if isinstance(feature, Tensor) else feature[0]).shape[0]


def _per_branch(tensor: Tensor, step: Step) -> Tensor:
    """One row for all, or those of one branch repeated for every branch of the step."""
    if tensor.shape[0] == 1:
        return tensor
    return tensor.repeat(len(step.branches), *[1] * (tensor.ndim - 1))
