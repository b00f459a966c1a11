"""All that is in force on one U-Net: the hooks, the controls of every `Run`, and the run under way.

`attaching.py` is what users call. Here is what happens at each call of the U-Net, and what makes a run that
was disturbed an error instead of a wrong picture.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from controlkit.attention import ExtraAttentions
from controlkit.contracts import RunInfo, Step
from controlkit.engine import Entry, Session
from controlkit.errors import Busy, NonFiniteAtStep, NotApplicable, ParameterError, StateError
from controlkit.hosts.attention import AttentionHooks
from controlkit.hosts.diffusers import DiffusersHost, output_sample, unet_arguments, with_sample
from controlkit.hosts.hooks import Hook
from controlkit.hosts.recurrence import KINDS as RECURRING
from controlkit.hosts.recurrence import Repeat, can_recur
from controlkit.hosts.replay import Replay, keep_lists, recompute
from controlkit.hosts.stepping import Stepping, steps_exactly

_ADDED = ("text_embeds", "time_ids")
registry: weakref.WeakKeyDictionary[nn.Module, Attachment] = weakref.WeakKeyDictionary()
registry_lock = threading.RLock()


@dataclass(frozen=True, eq=False)
class Layer:
    """The controls of one `attach`."""

    entries: tuple[Entry, ...]

    @property
    def guides(self) -> bool:
        """Whether one of them shifts the predicted noise."""
        return any("noise" in entry.control.slots for entry in self.entries)

    @property
    def recurs(self) -> bool:
        """Whether one of them has steps done again."""
        return any(getattr(entry.control, "recurrence", 1) > 1 for entry in self.entries)

    @property
    def attends(self) -> bool:
        """Whether one of them adds inside the cross-attention layers."""
        return any("attention" in entry.control.slots for entry in self.entries)


@dataclass(frozen=True)
class _Call:
    """A call of the U-Net under way: its arguments as they were given, and with what the controls add."""

    given: Mapping[str, Any]
    arguments: Mapping[str, Any]
    attention: ExtraAttentions | None


class Attachment:
    """All that is in force on one U-Net."""

    def __init__(self, host: DiffusersHost) -> None:
        self.host = host
        self._layers: list[Layer] = []
        self._owner = threading.get_ident()
        self._runner: int | None = None
        self._disturbed = False
        self._session: Session | None = None
        self._step: Step | None = None
        self._call: _Call | None = None
        self._replaying = False
        self._run: RunInfo | None = None
        self._handles: list[Any] = []
        self._attention = AttentionHooks(host.cross_attention.places)
        self._stepping = Stepping()

    # --- what is in force -----------------------------------------------------------------------------

    def add(self, layer: Layer, host: DiffusersHost) -> None:
        if self._layers and self._owner != threading.get_ident():
            raise Busy(
                "attach",
                found="controls that another thread has attached to this U-Net",
                expected="one thread at a time",
                fix="Give each thread a pipeline of its own, or attach after the other has left.",
            )
        if self.host.calls():
            raise StateError(
                "attach",
                found="a pipeline in the middle of its run",
                expected="a call before or after it",
                fix="Attach before calling the pipeline; a window or scale curve starts a control later.",
                code="CK-R7",
            )
        self._owner = threading.get_ident()
        if not self._handles:
            self.host = host
            self._attention = AttentionHooks(host.cross_attention.places)
            before = Hook(self._before)
            after = Hook(self._after)
            self._handles.append(host.unet.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(host.unet.register_forward_hook(after, with_kwargs=True, always_call=True))
        self._end_session()
        self._layers.append(layer)
        if layer.attends:
            self._attention.install()
        recurs = layer.recurs and can_recur(self.host.scheduler)
        if recurs or (layer.guides and self._guides_steps()):
            # Now: a loop may look up its step before it calls the U-Net.
            self._stepping.install(self.host.scheduler)

    def remove(self, layer: Layer) -> None:
        with registry_lock:
            if layer in self._layers:
                self._layers.remove(layer)
            if not any(other.attends for other in self._layers):
                self._attention.remove()
            if not any(other.guides for other in self._layers):
                self._stepping.remove()
            if not self._layers:
                while self._handles:
                    self._handles[-1].remove()
                    self._handles.pop()
                self._runner = None
                if registry.get(self.host.core) is self:
                    del registry[self.host.core]
            self._end_session()

    def refuse_wrong_pictures(self) -> None:
        """Raise if pictures made meanwhile may be wrong: another thread got in, or the U-Net was swapped."""
        disturbed, self._disturbed = self._disturbed, False
        if disturbed:
            refuse_threads("another thread that used it during this run")
        if self.host.was_swapped():
            raise StateError(
                "pipeline",
                found="another U-Net than the one the controls were attached to",
                expected="the same until the run ends",
                fix="Attach after changing the pipeline's U-Net.",
                code="CK-R14",
            )

    def _entries(self) -> list[Entry]:
        return [entry for layer in self._layers for entry in layer.entries]

    def _end_session(self) -> None:
        session, self._session, self._step, self._call = self._session, None, None, None
        self._attention.restart()
        if session is not None:
            session.close()

    # --- one call of the U-Net -----------------------------------------------------------------------------

    def _before(
        self, _unet: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._replaying:
            return None
        self._claim()
        given = self.host.arguments(args, kwargs)
        step, fresh = self._read(given)
        self._stepping.expect_taken(step.index, fresh=fresh)
        if fresh or self._session is None:
            self._end_session()
            self._run = self._describe(step)
            self._session = Session(self._entries(), self._run)
            if self._session.recurs:
                self._install_recurrence()
        assert self._run is not None
        if step.images != self._run.images or step.count != self._run.steps:
            raise StateError(
                "pipeline",
                found=f"{step.images} pictures in {step.count} steps at step {step.index + 1}",
                expected=f"{self._run.images} in {self._run.steps}, as at the first step",
                fix="Keep the batch and the steps as they are within one run.",
                code="CK-R8",
            )
        contribution = self._session.before(step)
        if contribution.attention is not None:
            self._attention.install()
        self._attention.begin(contribution.attention)
        self._step = step
        arguments = unet_arguments(given, contribution.tokens, contribution.residuals)
        self._call = _Call(keep_lists(given), keep_lists(arguments), contribution.attention)
        return (), arguments

    def _after(self, _unet: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        if self._replaying:
            return None
        step, self._step = self._step, None
        call, self._call = self._call, None
        session = self._session
        if output is None or step is None or session is None:  # the U-Net itself raised
            self._attention.drop()
            return None
        self._attention.end()
        everything = output_sample(output)
        channels = session.run.target.channels
        prediction = everything[:, :channels] if everything.shape[1] != channels else everything
        assert call is not None
        with self._replay(session, step, call) as again:
            shifted = self._guided(session, prediction, replace(step, again=again))
        if not bool(torch.isfinite(shifted).all()):
            raise NonFiniteAtStep(
                f"step {step.index + 1} of {step.count}",
                found=f"NaN or infinity in the U-Net's prediction ({_short(everything.dtype)})",
                expected="finite numbers, as what the controls added was",
                fix="Use float32 or bfloat16 for the pipeline, or lower the scales.",
            )
        if shifted is not prediction:
            rest = everything[:, channels:]
            everything = torch.cat([shifted, rest], dim=1) if rest.shape[1] else shifted
            output = with_sample(output, everything)
        if (times := session.repeats(step)) > 1:
            repeat = Repeat(self.host.unet, call.given, step, everything)
            self._stepping.repeat(step.index, step.timestep, repeat, times)
        return output

    @contextmanager
    def _replay(self, session: Session, step: Step, call: _Call) -> Generator[Any]:
        """The U-Net of this call to be run again, without these hooks, until its gradient has been taken."""
        if not any(layer.guides for layer in self._layers):
            yield None
            return
        self._replaying = True
        self._attention.begin(call.attention)
        alone = call.attention is None and "perturbed" not in step.branches
        try:
            yield Replay(self.host.core, call.arguments, step, session.run.target, alone=alone).noise
        finally:
            self._attention.drop()
            self._replaying = False

    def _guided(self, session: Session, prediction: Tensor, step: Step) -> Tensor:
        """The prediction with guidance in it, or as it is where the scheduler's step gets the guidance."""
        if not self._guides_steps() or step.alpha_bar is None:
            return session.after(prediction, step)
        shift = session.shift(prediction, step)
        if shift is not None:
            self._stepping.install(self.host.scheduler)
            self._stepping.hold(step.index, step.timestep, shift / -math.sqrt(1.0 - step.alpha_bar))
        return prediction

    def _install_recurrence(self) -> None:
        if not can_recur(self.host.scheduler):
            raise NotApplicable(
                "recurrence",
                found=f"{type(self.host.scheduler).__name__}",
                expected=" or ".join(RECURRING),
                fix="Others keep predictions from step to step; use one of these, or recurrence=1.",
            )
        self._stepping.install(self.host.scheduler)

    def _guides_steps(self) -> bool:
        return any(layer.guides for layer in self._layers) and steps_exactly(self.host.scheduler)

    def _claim(self) -> None:
        me = threading.get_ident()
        if self._runner is None:
            self._runner = me
        if self._runner != me:
            self._disturbed = True
            refuse_threads("another thread is using it")
        if self._disturbed:
            self._disturbed = False
            refuse_threads("another thread used it in the middle of this run")

    def _read(self, given: Mapping[str, Any]) -> tuple[Step, bool]:
        sample: Tensor = given["sample"]
        timestep: Any = given["timestep"]
        if not isinstance(timestep, Tensor):
            timestep = torch.as_tensor(timestep, device=sample.device)
        target = self.host.target()
        latents = sample[:, : target.channels] if sample.shape[1] > target.channels else sample
        tick = self.host.tick(timestep, latents)
        added: Mapping[str, Tensor] = given.get("added_cond_kwargs") or {}
        prompt = given.get("encoder_hidden_states")
        step = Step(
            index=tick.index,
            count=tick.count,
            timestep=timestep,
            latents=latents,
            prompt=prompt,
            tokens=prompt,
            branches=self.host.rows(latents, self.host.calls()),
            added={key: added[key] for key in _ADDED if key in added},
            alpha_bar=tick.alpha_bar,
        )
        return step, tick.fresh

    def _check_inputs(self, step: Step) -> None:
        """Refuse what would only show as a wrong picture, before the first step."""
        width = self.host.target().token_dim
        prompt = step.prompt
        if prompt is not None and (prompt.shape[-1] != width or prompt.shape[0] != step.latents.shape[0]):
            raise ParameterError(
                "prompt embeddings",
                found=f"shape {tuple(prompt.shape)}",
                expected=f"({step.latents.shape[0]}, n, {width}) for this U-Net",
                fix="Encode the prompt with this pipeline's own text encoder.",
                code="CK-P9",
            )
        scale = getattr(self.host.pipeline, "_guidance_scale", 1.0)
        finite = not isinstance(scale, float) or math.isfinite(scale)
        if not finite or (prompt is not None and not bool(torch.isfinite(prompt).all())):
            raise ParameterError(
                "prompt embeddings" if finite else "guidance_scale",
                found="NaN or infinity",
                expected="finite numbers",
                code="CK-P9",
            )

    def _describe(self, step: Step) -> RunInfo:
        self._check_inputs(step)
        if self.host.rescales_guidance() and not self._guides_steps():
            for entry in self._entries():
                if "noise" in entry.control.slots:
                    raise NotApplicable(
                        entry.control.name,
                        found="guidance_rescale above 0",
                        expected="0",
                        fix="Rescaling changes the size of the guided prediction, and the shift with it.",
                    )
        return RunInfo(
            target=self.host.target(),
            images=step.images,
            height=step.latents.shape[-2],
            width=step.latents.shape[-1],
            steps=step.count,
            device=step.latents.device,
            dtype=step.latents.dtype,
            decode=self.host.decode,
            encode=self.host.encode if self.host.decoders() else None,
            weights=self.host.weights,
            recompute=lambda: recompute(self.host.core, *self.host.decoders()),
        )


def refuse_threads(found: str) -> NoReturn:
    raise Busy(
        "pipeline",
        found=found,
        expected="one thread at a time: a pipeline's scheduler has one state",
        fix="Give each thread a pipeline of its own, or put a lock around attach and the call.",
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
