"""Composes controls over one run: who acts at a step, with which strength, and what that adds up to.

Knows no framework: a host gives it `Step`s and takes `Contribution`s. Order of work within a step: tokens
of all controls, in the order given; then residuals, each scaled and masked, summed in the order given, and
what cross-attention attends to beside the prompt; after the U-Net, shifts of the predicted noise.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from controlkit.attention import ExtraAttentions, Term, check_extra
from controlkit.contracts import (
    Active,
    Branch,
    Control,
    ExtraAttention,
    Residuals,
    RunInfo,
    Step,
    Target,
)
from controlkit.errors import (
    BatchMismatch,
    ControlFailed,
    ControlKitError,
    ControlKitWarning,
    NonFiniteAtStep,
    NotApplicable,
    ParameterError,
)
from controlkit.factors import Weights, split_blocks
from controlkit.report import ControlRecord
from controlkit.residuals import (
    add,
    check_shapes,
    conditional,
    dtype_name,
    extend,
    from_noise_shift,
    pad,
    pad_others,
    rms,
    rows_of,
    select,
    spread_rows,
    to_noise,
)
from controlkit.strength import Strength

T = TypeVar("T")


@dataclass(frozen=True)
class Contribution:
    """What all controls together add to one call of the U-Net, before it runs."""

    tokens: Tensor | None
    residuals: Residuals
    attention: ExtraAttentions | None = None


@dataclass(frozen=True)
class Entry:
    """A control in force, with the record that its report is made from."""

    control: Control
    record: ControlRecord


def admit(control: object, target: Target) -> Control:
    """Check, before any step, that a control can work on this U-Net.

    Raises:
        ParameterError: Not a control at all (a module without its map, say).
        NotApplicable: Its kind cannot work here; the message has the host's reason.
        BaseMismatch: Made for another base model.
        BatchMismatch: ``block_scales`` of the wrong length.
    """
    if not isinstance(control, Control):
        raise ParameterError(
            "attach",
            found=f"a {type(control).__name__}",
            expected="controls, such as module.on(map) or ck.Guidance(phi)",
            fix="Bind a module to its map first: ck.attach(pipe, module.on(map)).",
        )
    for slot in sorted(control.slots - target.slots):
        raise NotApplicable(
            control.name,
            found=f"a control that adds {slot}",
            expected="a pipeline where that can work",
            fix=target.refusals.get(slot, f"This U-Net takes no {slot}."),
        )
    control.check(target)
    strength = control.strength
    only_tokens = "tokens" in control.slots and "skips" not in control.slots  # else these are for the skips
    if only_tokens and (strength.mask is not None or strength.mode == "control"):
        raise NotApplicable(
            control.name,
            found="a mask" if strength.mask is not None else "mode='control'",
            expected="mode 'balanced' or 'prompt' and no mask",
            fix="Prompt tokens act on the whole picture and on both halves of classifier-free guidance.",
        )
    if "attention" in control.slots and strength.mode == "prompt":
        raise NotApplicable(
            control.name,
            found="mode='prompt'",
            expected="mode 'balanced' or 'control'",
            fix="It weakens residuals by their distance from the middle block; for a picture that competes"
            " with the prompt give a smaller scale, or block_scales.",
        )
    split_blocks(control, target)
    return control


@dataclass
class _Acting:
    entry: Entry
    active: Active
    plan: tuple[float, ...]
    weights: Weights
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict[tuple[int, int], Tensor])

    @property
    def name(self) -> str:
        return self.entry.control.name

    @property
    def strength(self) -> Strength:
        return self.entry.control.strength


class Session:
    """One run: from the first call of the U-Net to the last. Made by the host, closed when it ends.

    Args:
        entries: The controls in force, outermost first.
        run: What is known when the run begins.

    Raises:
        ControlKitError: A control does not fit the run; nothing has run yet.
    """

    def __init__(self, entries: Sequence[Entry], run: RunInfo) -> None:
        self.run = run
        self._acting: list[_Acting] = []
        self._terms: list[tuple[_Acting, Term]] = []
        self._idle: list[ControlRecord] = []
        try:
            for entry in entries:
                self._begin(entry)
        except BaseException:
            self.close()
            raise

    def _begin(self, entry: Entry) -> None:
        control, record, run = entry.control, entry.record, self.run
        plan = control.strength.plan(run.steps)
        record.begin(plan)
        if not any(plan):
            window = f"[{control.strength.start:g}, {control.strength.end:g}]"
            always_zero = control.strength.scale == 0
            reason = "its scale is 0" if always_zero else f"no step falls in its window {window}"
            record.note(f"active on 0 of {run.steps} steps: {reason}")
            if not always_zero:
                message = f"{control.name} acts on 0 of {run.steps} steps: {reason}"
                warnings.warn(ControlKitWarning(message), stacklevel=2)
            self._idle.append(record)
            return
        if "noise" not in control.slots and max(map(abs, plan)) > 2:
            record.note(f"scale {max(plan, key=abs):g} is outside the usual -2 .. 2")
        mask = control.strength.mask
        if mask is not None and mask.shape[0] not in (1, run.images):
            raise BatchMismatch(
                f"{control.name}: mask",
                found=f"{mask.shape[0]} masks for {run.images} pictures",
                expected="one mask, or one per picture",
            )
        active = _call(control.name, None, lambda: control.prepare(run))
        record.live = active
        for note in active.notes:
            record.note(note)
        weights = Weights(control, run.target, weaken=not active.cond_only)
        self._acting.append(_Acting(entry, active, plan, weights))

    def before(self, step: Step) -> Contribution:
        """Everything to add before the U-Net runs. ``step.tokens`` is what the U-Net was given."""
        acting = [a for a in self._acting if a.plan[step.index]]
        for a in self._acting:
            a.entry.record.step(applied=bool(a.plan[step.index]))
        for record in self._idle:
            record.step(applied=False)
        for a in acting:
            if a.active.tokens is not None:
                step = dataclasses.replace(step, tokens=self._tokens(a, step, a.active.tokens))
        total = Residuals()
        for a in acting:
            if a.active.residuals is not None:
                total = add(total, self._residuals(a, step, a.active.residuals))
        self._terms = [(a, term) for a in acting if (term := self._attention(a, step)) is not None]
        terms = tuple(term for _, term in self._terms)
        return Contribution(step.tokens, total, ExtraAttentions(terms, self.run.target) if terms else None)

    def _branches(self, a: _Acting, step: Step) -> tuple[Branch, ...]:
        """Those of a step that a control acts on."""
        alone = a.active.cond_only or a.strength.mode == "control"
        return conditional(step.branches) if alone else step.branches

    def _attention(self, a: _Acting, step: Step) -> Term | None:
        wanted = self._branches(a, step)
        if a.active.attention is None or not wanted:
            return None
        part = step if wanted == step.branches else select(step, wanted)
        extra = _call(a.name, step, a.active.attention, part)
        check_extra(a.name, extra, part, self.run.target)
        if wanted != step.branches:  # values of 0 for the others, which add 0
            rows = part.latents.shape[0]

            def every(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return tuple(spread_rows(t.expand(rows, -1, -1), step.branches, wanted) for t in tensors)

            extra = ExtraAttention(every(extra.keys), every(extra.values))

        def mask(stride: int) -> Tensor | None:
            region = self._region(a, step, stride)
            return None if region is None else region.flatten(1).unsqueeze(-1)

        return Term(a.name, extra, a.weights.attention(a.plan[step.index]), mask)

    def _tokens(self, a: _Acting, step: Step, function: Callable[[Step], Tensor]) -> Tensor | None:
        scale = a.plan[step.index]
        if not a.active.tokens_cond_only:
            return extend(a.name, step, _call(a.name, step, function, step) * scale)
        wanted = conditional(step.branches)
        if not wanted:  # the halves are run apart: this one grows as the conditional one does
            instead = dataclasses.replace(select(step, step.branches[:1]), branches=("cond",))
            return pad(step, _call(a.name, step, function, instead).shape[1])
        part = select(step, wanted)
        longer = extend(a.name, part, _call(a.name, step, function, part) * scale)
        return longer if wanted == step.branches else pad_others(step, wanted, longer)

    def _residuals(self, a: _Acting, step: Step, function: Callable[[Step], Residuals]) -> Residuals:
        wanted = self._branches(a, step)
        if not wanted:
            return Residuals()
        part = step if wanted == step.branches else select(step, wanted)
        raw = _call(a.name, step, function, part)
        if not raw:
            return raw
        check_shapes(a.name, raw, part, self.run.target)
        skips, mid, encoder = a.weights.at(a.plan[step.index])

        def finish(residual: Tensor, factor: float, stride: int) -> Tensor:
            scaled = residual if factor == 1.0 else residual * factor
            scaled = self._masked(a, scaled, part, stride)
            if wanted != step.branches:
                scaled = spread_rows(scaled.expand(part.latents.shape[0], -1, -1, -1), step.branches, wanted)
            return scaled.to(step.latents.dtype)

        target = self.run.target
        done = Residuals(
            tuple(map(finish, raw.skips, skips, target.skip_strides)),
            None if raw.mid is None else finish(raw.mid, mid, target.skip_strides[-1]),
            tuple(map(finish, raw.encoder, encoder, target.encoder_strides)),  # the middle's may be absent
        )
        norm = rms(done)
        a.entry.record.norm(norm)
        if not math.isfinite(norm):
            raise NonFiniteAtStep(
                a.name,
                found=f"NaN or infinity in what it adds at step {step.index + 1} of {step.count}"
                f" ({dtype_name(raw)})",
                expected="finite numbers",
                fix="Use float32 or bfloat16 for the module; check the map and the weights.",
            )
        return done

    def _masked(self, a: _Acting, residual: Tensor, step: Step, stride: int) -> Tensor:
        region = self._region(a, step, stride)
        return residual if region is None else residual * region.to(residual.dtype)

    def _region(self, a: _Acting, step: Step, stride: int) -> Tensor | None:
        """Where a control acts, (1 or rows, 1, h, w) at the size of a feature."""
        if a.strength.mask is None:
            return None
        size = (math.ceil(self.run.height / stride), math.ceil(self.run.width / stride))
        if size not in a.masks:
            mask = a.strength.mask.to(self.run.device, torch.float32)
            a.masks[size] = functional.interpolate(mask, size, mode="area")
        mask = a.masks[size]
        return mask if mask.shape[0] == 1 else mask.repeat(len(step.branches), 1, 1, 1)

    def after(self, prediction: Tensor, step: Step) -> Tensor:
        """The U-Net's prediction with every shift of the noise added.

        Args:
            prediction: (rows, channels, h, w), what the U-Net returned for the noisy latents.
            step: The step that `before` was given.
        """
        shift = self.shift(prediction, step)
        if shift is None:
            return prediction
        shift = from_noise_shift(shift, step, self.run.target).to(prediction.dtype)
        return prediction + shift.repeat(len(step.branches), 1, 1, 1)

    def shift(self, prediction: Tensor, step: Step) -> Tensor | None:
        """The sum of all shifts of the noise, for a host that puts it in its place itself.

        Args:
            prediction: As for `after`, in whose place this is called.
            step: The step that `before` was given.

        Returns:
            (images, channels, h, w), in the epsilon parametrisation; None where nothing is shifted.
        """
        total: Tensor | None = None
        terms, self._terms = self._terms, []
        for a, term in terms:
            norm = term.rms()
            a.entry.record.norm(norm)
            if not math.isfinite(norm):
                raise NonFiniteAtStep(
                    a.name,
                    found=f"NaN or infinity in what it adds at step {step.index + 1} of {step.count}",
                    expected="finite numbers",
                    fix="Use float32 or bfloat16 for the module; check the picture and the weights.",
                )
        for a in self._acting:
            scale = a.plan[step.index]
            if a.active.shift is None or not scale:
                continue
            branch: Branch = "cond" if "cond" in step.branches else step.branches[0]
            if step.alpha_bar == 0:
                a.entry.record.note(f"step {step.index + 1} starts from pure noise (ᾱ = 0): nothing to guide")
                continue
            part = select(step, (branch,))
            noise = to_noise(rows_of(prediction, step.branches, (branch,)), part, self.run.target)
            shift = _call(a.name, step, a.active.shift, noise, part) * scale
            shift = self._masked(a, shift, part, 1)
            norm = rms(Residuals(encoder=(shift,)))
            a.entry.record.norm(norm)
            if not math.isfinite(norm):
                raise NonFiniteAtStep(
                    a.name,
                    found=f"a gradient that is not finite at step {step.index + 1} of {step.count}",
                    expected="a finite gradient of phi",
                    fix="Lower scale, give max_norm, or check phi for logarithms and divisions by zero.",
                )
            total = shift if total is None else total + shift
        return total

    @property
    def recurs(self) -> bool:
        """Whether a step of this run is to be done more than once."""
        return any(a.active.repeats > 1 for a in self._acting)

    def repeats(self, step: Step) -> int:
        """How often this step is to be done: the most that a control that acts in it asks for."""
        return max((a.active.repeats for a in self._acting if a.plan[step.index]), default=1)

    def close(self) -> None:
        """End the run; harmless when called twice."""
        acting, self._acting = self._acting, []
        for a in acting:
            a.entry.record.finish()
            if a.active.close is not None:
                a.active.close()


def _call(name: str, step: Step | None, function: Callable[..., T], *args: object) -> T:
    """Run a control's own code; what it raises names the control and the step."""
    try:
        return function(*args)
    except ControlKitError:
        raise
    except Exception as error:
        when = "while it was being prepared" if step is None else f"at step {step.index + 1} of {step.count}"
        raise ControlFailed(
            f"{name} failed {when}",
            found=f"{type(error).__name__}: {error}",
            fix="The pipeline is as it was before; the cause is attached to this error.",
        ) from error
