"""`attach`: controls in force on a pipeline, over its own untouched ``__call__``, undone on leaving.

Hook handles carry everything, two on the U-Net, and two in each cross-attention layer where a control adds
there; all go when the last `Run` that needs them ends. Guidance with DDPM, or with a DDIM that clips, also
stands in front of the scheduler's ``step``, and goes with the last that needs it. All runs on one U-Net share
one `Attachment`, so nested `with` blocks compose as if attached together, in any order of leaving.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from controlkit.attachment import Attachment, Layer, registry, registry_lock
from controlkit.contracts import Branch, Control
from controlkit.engine import Entry, admit
from controlkit.errors import (
    ControlKitWarning,
    ParameterError,
    StateError,
)
from controlkit.hosts.diffusers import DiffusersHost
from controlkit.report import ControlRecord, Report


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
    layer = Layer(tuple(Entry(control, ControlRecord(control.name)) for control in admitted))
    with registry_lock:
        attachment = registry.get(host.core)
        if attachment is None:
            attachment = Attachment(host)
            registry[host.core] = attachment
        try:
            attachment.add(layer, host)
            return Run(attachment, layer)
        except BaseException:  # Ctrl-C too: nothing half attached
            attachment.remove(layer)
            raise


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

    def __init__(self, attachment: Attachment, layer: Layer) -> None:
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
        was_attached = self._finalizer.alive
        if was_attached:
            self._attachment.remove(self._layer)
            self._finalizer.detach()  # last: an interrupted removal is then finished when the run is dropped
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


def _dropped(attachment: Attachment, layer: Layer) -> None:
    attachment.remove(layer)
    warnings.warn(
        ControlKitWarning("a run was dropped while attached, so its controls were detached; keep the run"),
        stacklevel=2,
    )
