"""How what controls add gets into the U-Net of a web UI: by hooks on its blocks.

No method is replaced. A hook before the U-Net asks the engine what is to be added; hooks on the blocks add
it: after a block of the encoder (T2I-Adapter), after the middle block, and before a block of the decoder to
those channels of its input that are the skip (ControlNet); two in each cross-attention layer add image
prompts (IP-Adapter, `controlkit.hosts.attention`); a hook after the U-Net adds guidance. Whatever goes wrong
in one of them, all are removed before the error is passed on.

Guidance is added to what the U-Net predicts, the same on every row, so that it comes out of classifier-free
guidance unchanged, under every sampler, whether that goes by predicted pictures or by predicted noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from controlkit.attention import ExtraAttentions
from controlkit.contracts import Residuals, Step, Target
from controlkit.engine import Entry, Session
from controlkit.errors import NotApplicable
from controlkit.hosts.attention import AttentionHooks, Place
from controlkit.hosts.hooks import Hook
from controlkit.hosts.rows import cut_attention, cut_residuals
from controlkit.hosts.sessions import Sessions
from controlkit.hosts.webui.calls import Announced, unmarked
from controlkit.residuals import from_noise_shift, to_noise

_NAMES = ("x", "timesteps", "context", "y")
_AT = {name: place for place, name in enumerate(_NAMES)}


class Controlled:
    """Controls in force on one U-Net, for one sampling.

    Args:
        unet: LDM's or sgm's ``UNetModel``.
        target: The same, described.
        entries: The controls.
        alpha_bar: ᾱ of an announced noise level.
        decode: Clean latents to pixels, for guidance.
        places: The U-Net's cross-attention layers, for image prompts; in the order of ``target.attention``.
        recompute: For guidance that saves memory; None: there is no such way here.
    """

    def __init__(
        self,
        unet: Any,
        target: Target,
        entries: Sequence[Entry],
        *,
        alpha_bar: Callable[[Announced], float],
        decode: Callable[[Tensor], Tensor] | None = None,
        places: Sequence[Place] = (),
        recompute: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.target, self.entries = target, tuple(entries)
        self._unet, self._alpha_bar = unet, alpha_bar
        self._guides = any("noise" in entry.control.slots for entry in entries)
        self._attends = any("attention" in entry.control.slots for entry in entries)
        self._attention = AttentionHooks(places)
        self._extra: ExtraAttentions | None = None
        self._sessions = Sessions(entries, target, weights=self._weights, decode=decode, recompute=recompute)
        self._handles: list[Any] = []
        self._announced: Announced | None = None
        self._failure: Exception | None = None
        self._adding = Residuals()
        self._step: tuple[Step, Session] | None = None
        self._shift: Tensor | None = None
        self._replaying = False
        self._differentiates = False
        self._context: Tensor | None = None

    # --- coming and going ---------------------------------------------------------------------------------

    def install(self) -> None:
        """Put the hooks in place."""
        unet, add = self._unet, self._handles.append
        add(unet.register_forward_hook(Hook(self._after), with_kwargs=True, always_call=True))  # the first
        add(unet.register_forward_pre_hook(Hook(self._before), with_kwargs=True))
        if any("tokens" in entry.control.slots for entry in self.entries):
            for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
                add(block.register_forward_pre_hook(Hook(self._lengthened)))
        depth = len(self.target.skip_channels)
        for number, position in enumerate(self.target.encoder_positions):
            if position < depth:
                block = unet.input_blocks[position]
                add(block.register_forward_hook(Hook(self._guarded(self._feature(number)))))
        add(unet.middle_block.register_forward_hook(Hook(self._guarded(self._middle))))
        for place, block in enumerate(unet.output_blocks):
            skip = self._guarded(self._skip(depth - 1 - place))
            add(block.register_forward_pre_hook(Hook(skip)))
        if self._attends:
            self._attention.install()

    @property
    def installed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def remove(self) -> None:
        """Take the hooks away and end the run; harmless when called twice."""
        self._take_away(keep=0)

    def _take_away(self, keep: int) -> None:
        self._attention.remove()
        while len(self._handles) > keep:
            self._handles.pop().remove()
        self._announced, self._step, self._shift, self._adding = None, None, None, Residuals()
        self._context = None
        self._sessions.close()

    def announce(self, step: Announced) -> None:
        """Tell what the U-Net is about to be called for."""
        self._announced, self._shift = step, None

    def fail(self, error: Exception) -> None:
        """Have the next call of the U-Net raise this, where the web UI cannot overlook it."""
        self._failure = error

    # --- one call of the U-Net ----------------------------------------------------------------------------

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                return function(*args)
            except BaseException:
                self.remove()
                raise

        return call

    def _before(self, _unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._replaying:
            return None
        try:
            return self._asked(args, kwargs)
        except BaseException:
            self.remove()
            raise

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._step, self._adding, self._extra, self._context = None, Residuals(), None, None
        self._attention.drop()
        if self._failure is not None:
            raise self._failure
        given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        x: Tensor = given["x"]
        here = self._announced
        branches = None if here is None else here.take(x.shape[0])
        if here is None or branches is None:
            return None  # a call of someone else's
        sized: Tensor | None = given.get("y")
        mark, prompt = unmarked(given.get("context"))
        step = Step(
            index=here.index,
            count=here.count,
            timestep=given["timesteps"].float(),
            latents=x[:, : self.target.channels],
            prompt=prompt,
            tokens=prompt,
            branches=branches,
            added={} if sized is None else {"embedded": sized},
            alpha_bar=self._alpha_bar(here),
        )
        session = self._sessions.of(step)
        contribution = session.before(step)
        self._adding = contribution.residuals
        self._step = (step, session)
        if contribution.attention is not None:
            self._extra = contribution.attention
            self._attention.install()  # again, where something exchanged the layers' parts since
            self._attention.begin(self._extra)
        tokens = contribution.tokens
        if tokens is prompt or tokens is None:
            return None
        if mark is not None:  # who marked the prompt gives it to networks of its own before it gets here
            self._context = tokens
            return None
        place = _AT["context"]
        if len(args) > place:
            return (*args[:place], tokens, *args[place + 1 :]), kwargs
        return args, {**kwargs, "context": tokens}

    def _weights(self) -> dict[str, Tensor]:
        """The U-Net's own weights, for controls that are stored as a difference to them."""
        return {name: value.detach() for name, value in self._unet.state_dict().items()}

    def _after(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._replaying:
            return None
        under_way, self._step, self._context = self._step, None, None
        if output is None:  # the U-Net raised, and torch goes through these very hooks: this one stays, idle
            self._take_away(keep=1)
            return None
        if under_way is None or not (self._guides or self._attends):
            self._adding = Residuals()
            return None
        try:
            self._attention.end()
            given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
            return self._guided(output, *under_way, given)
        except BaseException:
            self.remove()
            raise
        finally:
            self._adding = Residuals()

    # --- the blocks ---------------------------------------------------------------------------------------

    def _feature(self, number: int) -> Callable[..., Any]:
        def add(_block: Any, _args: Any, output: Tensor) -> Tensor | None:
            features = self._adding.encoder
            return output + features[number].to(output) if number < len(features) else None

        return add

    def _lengthened(self, _block: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A block is given features, the time, and the prompt, which other extensions may have marked."""
        return None if self._context is None else (*args[:2], self._context, *args[3:])

    def _middle(self, _block: Any, _args: Any, output: Tensor) -> Tensor:
        if self._differentiates and not torch.is_grad_enabled():
            raise NotApplicable(
                "guidance through the U-Net",
                found="a U-Net that another extension runs without gradients (as sd-webui-controlnet does)",
                expected="one that keeps them",
                fix="Switch through_unet off, or have that extension's units be units of this one.",
            )
        middle, features = self._adding.mid, self._adding.encoder
        if middle is not None:
            output = output + middle.to(output)
        if len(features) == len(self.target.encoder_positions):
            output = output + features[-1].to(output)
        return output

    def _skip(self, number: int) -> Callable[..., Any]:
        channels = self.target.skip_channels[number]

        def add(_block: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not self._adding.skips:
                return None
            h: Tensor = args[0]
            skip = h[:, -channels:] + self._adding.skips[number].to(h)
            return torch.cat([h[:, :-channels], skip], dim=1), *args[1:]

        return add

    # --- guidance -----------------------------------------------------------------------------------------

    def _guided(self, output: Tensor, step: Step, session: Session, given: dict[str, Any]) -> Tensor:
        """The prediction of all rows with the shift in it, which the conditional rows are asked for first."""
        channels, images = self.target.channels, step.images
        part = step
        if "cond" in step.branches:
            first = step.branches.index("cond") * images
            rows = slice(first, first + images)
            part = dataclasses.replace(
                step,
                timestep=step.timestep[rows],
                latents=step.latents[rows],
                prompt=None,
                tokens=None,
                branches=("cond",),
                added={name: value[rows] for name, value in step.added.items()},
            )
            if self._shift is None:
                again = self._again(part, rows, given)
                shift = session.shift(output[rows, :channels].float(), dataclasses.replace(part, again=again))
                self._shift = None if shift is None else from_noise_shift(shift, part, self.target)
        if self._shift is None:
            return output
        shifted = output[:, :channels] + self._shift.to(output).repeat(len(step.branches), 1, 1, 1)
        return torch.cat([shifted, output[:, channels:]], dim=1) if output.shape[1] > channels else shifted

    def _again(self, part: Step, rows: slice, given: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        """The conditional rows once more, with what the controls added to them."""
        x: Tensor = given["x"]
        adding = cut_residuals(self._adding, rows, x.shape[0])

        def noise(latents: Tensor) -> Tensor:
            before, self._adding, self._replaying = self._adding, adding, True
            self._differentiates = latents.requires_grad and torch.is_grad_enabled()
            try:
                own = {
                    name: value[rows] if isinstance(value, Tensor) and value.shape[0] == x.shape[0] else value
                    for name, value in given.items()
                }
                beside = x[rows, self.target.channels :]
                noisy = latents.to(x.dtype)
                own["x"] = torch.cat([noisy, beside], dim=1) if beside.shape[1] else noisy
                self._attention.begin(cut_attention(self._extra, rows, x.shape[0]))
                predicted: Tensor = self._unet(**own)
            finally:
                self._attention.drop()
                self._adding, self._replaying, self._differentiates = before, False, False
            here = dataclasses.replace(part, latents=latents)
            return to_noise(predicted[:, : self.target.channels].to(latents.dtype), here, self.target)

        return noise
