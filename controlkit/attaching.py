"""`attach`: controls in force on a pipeline, over its own untouched ``__call__``, undone on leaving.

Two hook handles on the U-Net carry everything; both go when the last `Run` on that U-Net ends. All runs
on one U-Net share one `_Attachment`, so nested `with` blocks compose as if attached together, in any order
of leaving.
"""

from __future__ import annotations

import math
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from controlkit.contracts import Branch, Control, RunInfo, Step
from controlkit.engine import Entry, Session, admit
from controlkit.errors import (
    Busy,
    ControlKitWarning,
    NonFiniteAtStep,
    NotApplicable,
    ParameterError,
    StateError,
)
from controlkit.hosts.diffusers import DiffusersHost, output_sample, unet_arguments, with_sample
from controlkit.report import ControlRecord, Report

_ADDED = ("text_embeds", "time_ids")
_registry: weakref.WeakKeyDictionary[nn.Module, _Attachment] = weakref.WeakKeyDictionary()
_registry_lock = threading.RLock()


def attach(
    pipeline_or_unet: Any,
    *controls: Control,
    scheduler: Any = None,
    num_steps: int | None = None,
    branches: Sequence[Branch] | None = None,
) -> Run:
    """Put controls in force on a pipeline, or on a bare U-Net in a loop of your own.

    The controls act from now until the `with` block is left or `Run.detach` is called. The pipeline's own
    ``__call__`` runs as it is; on leaving, however that happens, the pipeline is exactly as it was. Any
    number of controls of any kind may be given, and attached again inside the block; what they add is
    summed in the order given.

    Args:
        pipeline_or_unet: A diffusers pipeline that denoises with a ``UNet2DConditionModel`` (Stable
            Diffusion 1.x, 2.x, XL; text-to-image, image-to-image, inpainting, …), or such a U-Net.
        controls: What ``module.on(...)`` and `Guidance` return, or a third party's `Control`.
        scheduler: For a bare U-Net: the scheduler that the loop steps with.
        num_steps: For a bare U-Net without a scheduler: the number of steps of the loop.
        branches: For a bare U-Net: the meaning of the equal parts of its batch, such as
            ``("uncond", "cond")``. Without it two equal halves are taken for these, anything else for
            ``("cond",)``.

    Returns:
        The run: a context manager with ``report()`` and ``detach()``. Keep it: when it is dropped, the
        controls are detached.

    Raises:
        NotApplicable: The pipeline has no such U-Net, or a control's kind cannot work in it.
        BaseMismatch: A control was made for another base model.
        ParameterError: A schedule on a bare U-Net whose steps are not known, or not a control at all.
        Busy: Another thread has controls attached to this U-Net, or is running it.

    Example:
        >>> with ck.attach(pipe, canny.on(edges, scale=0.9, end=0.8)) as run:  # doctest: +SKIP
        ...     image = pipe("a red brick house").images[0]
        >>> print(run.report())  # doctest: +SKIP
    """
    host = DiffusersHost(pipeline_or_unet, scheduler, num_steps, branches)
    target = host.target()
    admitted = [admit(control, target) for control in controls]
    for control in admitted:
        _refuse_unplaced(control, host)
    layer = _Layer(tuple(Entry(control, ControlRecord(control.name)) for control in admitted))
    with _registry_lock:
        attachment = _registry.get(host.core)
        if attachment is None:
            attachment = _Attachment(host)
            _registry[host.core] = attachment
        attachment.add(layer, host)
    return Run(attachment, layer)


def _refuse_unplaced(control: Control, host: DiffusersHost) -> None:
    if not control.strength.is_constant and not host.knows_steps:
        raise ParameterError(
            control.name,
            found="a window or a scale curve on a bare U-Net",
            expected="the steps of the loop",
            fix="Give attach scheduler=... or num_steps=...",
            code="CK-P8",
        )
    if control.strength.mode == "control" and not host.knows_branches:
        raise ParameterError(
            control.name,
            found="mode='control' on a bare U-Net",
            expected="which rows are the conditional ones",
            fix="Give attach branches=('uncond', 'cond'), in your batch's order.",
            code="CK-P7",
        )


class Run:
    """Controls in force; made by `attach`."""

    def __init__(self, attachment: _Attachment, layer: _Layer) -> None:
        self._attachment = attachment
        self._layer = layer
        self._finalizer = weakref.finalize(self, _dropped, attachment, layer)
        self._finalizer.atexit = False

    def __enter__(self) -> Run:
        if not self.attached:
            raise StateError(
                "run", found="a run that was detached", expected="a fresh one", fix="Call attach again."
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_attached = self._finalizer.detach() is not None
        if was_attached:
            self._attachment.remove(self._layer)
        if was_attached and kind is None:
            self._attachment.refuse_wrong_pictures()
            if self._layer.entries and not any(entry.record.steps for entry in self._layer.entries):
                message = "controls were attached, but the U-Net was never called: they had no effect"
                warnings.warn(ControlKitWarning(message), stacklevel=2)

    @property
    def attached(self) -> bool:
        """Whether the controls are in force."""
        return self._finalizer.alive

    @property
    def branches(self) -> tuple[Branch, ...] | None:
        """For a bare U-Net: the meaning of the parts of its batch. Set it between calls of a loop that
        runs the halves of classifier-free guidance one after the other."""
        return self._attachment.host.branches

    @branches.setter
    def branches(self, value: Sequence[Branch] | None) -> None:
        self._attachment.host.branches = None if value is None else tuple(value)

    def detach(self) -> None:
        """Take the controls off; harmless when they are off already.

        Raises:
            StateError: The pipeline is running (this was called from a callback).
            Busy: Another thread used the pipeline meanwhile, so that pictures may be wrong.
        """
        if self.attached and self._attachment.host.calls():
            raise StateError(
                "detach",
                found="a pipeline in the middle of its run",
                expected="a call after it",
                fix="To stop a control part of the way give it end=... or a scale curve.",
                code="CK-R7",
            )
        self.__exit__(None, None, None)

    def report(self) -> Report:
        """What each control did: steps applied and skipped, resizing, size of what it added."""
        return Report(tuple(entry.record.row() for entry in self._layer.entries))


@dataclass(frozen=True, eq=False)
class _Layer:
    """The controls of one `attach`."""

    entries: tuple[Entry, ...]


def _dropped(attachment: _Attachment, layer: _Layer) -> None:
    attachment.remove(layer)
    warnings.warn(
        ControlKitWarning("a run was dropped while attached, so its controls were detached; keep the run"),
        stacklevel=2,
    )


class _Attachment:
    """All that is in force on one U-Net."""

    def __init__(self, host: DiffusersHost) -> None:
        self.host = host
        self._layers: list[_Layer] = []
        self._owner = threading.get_ident()
        self._runner: int | None = None
        self._disturbed = False
        self._session: Session | None = None
        self._step: Step | None = None
        self._run: RunInfo | None = None
        self._handles: list[Any] = []

    # --- what is in force -----------------------------------------------------------------------------

    def add(self, layer: _Layer, host: DiffusersHost) -> None:
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
            before = _Hook(self._before)
            after = _Hook(self._after)
            self._handles.append(host.unet.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(host.unet.register_forward_hook(after, with_kwargs=True, always_call=True))
        self._end_session()
        self._layers.append(layer)

    def remove(self, layer: _Layer) -> None:
        with _registry_lock:
            self._end_session()
            if layer in self._layers:
                self._layers.remove(layer)
            if not self._layers:
                for handle in self._handles:
                    handle.remove()
                self._handles.clear()
                self._runner = None
                if _registry.get(self.host.core) is self:
                    del _registry[self.host.core]

    def refuse_wrong_pictures(self) -> None:
        """Raise if pictures made meanwhile may be wrong: another thread got in, or the U-Net was swapped."""
        disturbed, self._disturbed = self._disturbed, False
        if disturbed:
            _refuse_threads("another thread that used it during this run")
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
        session, self._session, self._step = self._session, None, None
        if session is not None:
            session.close()

    # --- one call of the U-Net -----------------------------------------------------------------------------

    def _before(
        self, _unet: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._claim()
        given = self.host.arguments(args, kwargs)
        step, fresh = self._read(given)
        if fresh or self._session is None:
            self._end_session()
            self._run = self._describe(step)
            self._session = Session(self._entries(), self._run)
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
        self._step = step
        return (), unet_arguments(given, contribution.tokens, contribution.residuals)

    def _after(self, _unet: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        step, self._step = self._step, None
        session = self._session
        if output is None or step is None or session is None:  # the U-Net itself raised
            return None
        everything = output_sample(output)
        channels = session.run.target.channels
        prediction = everything[:, :channels] if everything.shape[1] != channels else everything
        shifted = session.after(prediction, step)
        if not bool(torch.isfinite(shifted).all()):
            raise NonFiniteAtStep(
                f"step {step.index + 1} of {step.count}",
                found=f"NaN or infinity in the U-Net's prediction ({_short(everything.dtype)})",
                expected="finite numbers, as what the controls added was",
                fix="Use float32 or bfloat16 for the pipeline, or lower the scales.",
            )
        if shifted is prediction:
            return None
        rest = everything[:, channels:]
        return with_sample(output, torch.cat([shifted, rest], dim=1) if rest.shape[1] else shifted)

    def _claim(self) -> None:
        me = threading.get_ident()
        if self._runner is None:
            self._runner = me
        if self._runner != me:
            self._disturbed = True
            _refuse_threads("another thread is using it")
        if self._disturbed:
            self._disturbed = False
            _refuse_threads("another thread used it in the middle of this run")

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
        if self.host.rescales_guidance():
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
        )


class _Hook:
    """A hook that runs outside compiled graphs, and that refuses to be copied with the model."""

    def __init__(self, function: Any) -> None:
        self._function: Any = torch.compiler.disable(function)  # pyright: ignore[reportUnknownMemberType]

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise StateError(
            "pipeline",
            found="controls attached while it is being pickled or copied",
            expected="a pipeline without",
            fix="Leave the with block (or call run.detach()) first.",
            code="CK-R11",
        )


def _refuse_threads(found: str) -> NoReturn:
    raise Busy(
        "pipeline",
        found=found,
        expected="one thread at a time: a pipeline's scheduler has one state",
        fix="Give each thread a pipeline of its own, or put a lock around attach and the call.",
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
