"""Controls as a patch of ComfyUI's MODEL: image prompts, style tokens, and adapters that are fused.

What a CONTROL_NET cannot carry is put in around each call of the U-Net: tokens after the prompt's, for both
halves alike, in the steps in which the control acts; a second attention in every cross-attention layer, by
hooks that last as long as the sampling (`controlkit.hosts.attention`); and residuals, which join those of the
CONTROL_NETs of the conditioning.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from controlkit.contracts import Control, Step, Target
from controlkit.engine import Entry, admit
from controlkit.errors import NotApplicable
from controlkit.hosts.attention import AttentionHooks
from controlkit.hosts.comfy.attachments import own_key
from controlkit.hosts.comfy.clock import step_at
from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.kept import REPLAY, Added, Kept
from controlkit.hosts.comfy.layout import MAPS, Lists, as_lists, merged
from controlkit.hosts.comfy.running import branches_of, conditionings, signal
from controlkit.hosts.comfy.unet import target_of
from controlkit.hosts.ldm import places_of
from controlkit.hosts.sessions import Sessions
from controlkit.report import ControlRecord

_PLAIN = "crossattn_controlnet"
"""ComfyUI's name, among a call's arguments, for the prompt without the tokens that were appended to it."""


class Patch:
    """One control on one model.

    Args:
        control: What acts.
        patchers: Holds of its networks for ComfyUI's memory manager.
    """

    def __init__(self, control: Control, patchers: Sequence[Any] = ()) -> None:
        self.control, self._patchers = control, list(patchers)
        self.record = ControlRecord(control.name)
        self._under_way: _Sampling | None = None

    def install(self, patcher: Any) -> Any:
        """A copy of the MODEL with the control on it; others on it stay.

        Raises:
            ControlKitError: The control does not fit this MODEL.
        """
        target = target_of(patcher.model, patched=True)
        admit(self.control, target)
        new = patcher.clone()
        key = own_key()

        # Functions, not methods: ComfyUI copies options deeply, and with methods what they belong to.
        def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
            return self._sampling(executor, target, *args, **kwargs)

        def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            return self._calling(executor, *args, **kwargs)

        kinds = host("comfy.patcher_extension").WrappersMP
        new.add_wrapper_with_key(kinds.OUTER_SAMPLE, key, sample)
        new.add_wrapper_with_key(kinds.DIFFUSION_MODEL, key, call)
        if self._patchers:
            new.set_additional_models(key, self._patchers)
        new.set_attachments(key, self)
        return new

    def _sampling(self, executor: Any, target: Target, *args: Any, **kwargs: Any) -> Any:
        """Around a whole sampling: begins, and ends however it ends."""
        self.record = ControlRecord(self.control.name)
        unet = executor.class_obj.model_patcher.model.diffusion_model
        self._under_way = _Sampling(self.control, self.record, target, unet)
        try:
            return executor(*args, **kwargs)
        finally:
            under_way, self._under_way = self._under_way, None
            under_way.close()

    def _calling(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Lists | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """Around a call of the U-Net, by the arguments that it has in ComfyUI."""
        if self._under_way is None:
            raise NotApplicable(
                self.control.name,
                found="a call of the U-Net outside of a sampling",
                expected="one by a sampler of ComfyUI, which says when a sampling begins and ends",
                fix="Sample with ComfyUI's own sampler nodes, or take the control off this MODEL.",
            )
        options = transformer_options or {}
        under_way, plain = self._under_way, more.get(_PLAIN)
        step = under_way.step(x, timesteps, context, plain, y, options)
        added = under_way.added(step, options)
        if added.tokens is not None and context is not None:
            more = {**more, _PLAIN: step.prompt}  # for those after this one
            context = torch.cat([context, added.tokens], dim=1)
        if added.residuals:
            control = merged(as_lists(added.residuals, under_way.target, x.shape[0]), control)
        with under_way.attending(added):
            output = executor(x, timesteps, context, y, control, transformer_options, **more)
        under_way.done(output, step, options)
        return output


class _Sampling:
    """One sampling: what the control adds, and the hooks that add part of it."""

    def __init__(self, control: Control, record: ControlRecord, target: Target, unet: Any) -> None:
        self.target = target
        self._sessions = Sessions([Entry(control, record)], target, map_layout=MAPS)
        self._kept = Kept()
        self._hooks = AttentionHooks(places_of(unet) if "attention" in control.slots else ())

    def step(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        plain: Tensor | None,
        y: Tensor | None,
        options: Mapping[str, Any],
    ) -> Step:
        """A call as controls see it."""
        level = float(options["sigmas"].flatten()[0])
        index, count = step_at(options.get("sample_sigmas"), level)
        return Step(
            index=index,
            count=count,
            timestep=timesteps.float(),
            latents=x[:, : self.target.channels],
            prompt=context if plain is None else plain,
            tokens=context,
            branches=branches_of(conditionings(options)[0]),
            added={} if y is None else {"embedded": y},
            alpha_bar=signal(level),
        )

    def added(self, step: Step, options: Mapping[str, Any]) -> Added:
        """What the control adds to a call; what it added before where that call is run again."""
        _, names = conditionings(options)
        if options.get(REPLAY):
            return self._kept.again(names)
        made = self._sessions.of(step).before(step)
        extra: Tensor | None = None
        if made.tokens is not None and step.tokens is not None and made.tokens is not step.tokens:
            extra = made.tokens[:, step.tokens.shape[1] :]
        added = Added(made.residuals, extra, made.attention)
        self._kept.keep(names, added, step.latents.shape[0])
        return added

    @contextmanager
    def attending(self, added: Added) -> Generator[None]:
        """In which the cross-attention layers attend to more."""
        if added.attention is not None:
            self._hooks.install()  # again, where something exchanged the layers' parts since
        self._hooks.begin(added.attention)
        try:
            yield
            self._hooks.end()
        finally:
            self._hooks.drop()

    def done(self, output: Tensor, step: Step, options: Mapping[str, Any]) -> None:
        """A call has ended: its report is made."""
        if not options.get(REPLAY):
            self._sessions.of(step).after(output, step)

    def close(self) -> None:
        """End it; nothing stays on the U-Net."""
        self._hooks.remove()
        self._sessions.close()
        self._kept.clear()
