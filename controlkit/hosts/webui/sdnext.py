"""What happens when, while SD.Next makes a picture: as in `script.py`, by `controlkit.attach`.

SD.Next calls scripts as AUTOMATIC1111 does, but it denoises with pipelines of diffusers, and calls none
before each sampling: the controls are attached to its pipeline when a batch begins, and off when SD.Next says
that the picture has ended, however that was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from controlkit.attaching import Run, attach
from controlkit.contracts import Control, Target
from controlkit.engine import Entry
from controlkit.errors import NotApplicable, StateError
from controlkit.hosts.diffusers import DiffusersHost
from controlkit.hosts.webui import script
from controlkit.report import Report

_log = logging.getLogger(__name__)
_MORE = {"enable_hr": "a second pass", "detailer_enabled": "the detailer"}
"""What SD.Next does with further pipelines, whose steps are not those of the first."""


class Front(script.Front):
    """Everything of ours that is in force in SD.Next: at most one picture's controls."""

    def release(self) -> None:
        """Take everything off the model; harmless when there is nothing."""
        now = self._now
        super().release()
        if isinstance(now, _Attached) and now.report is not None:
            self.report = now.report
            _log.info("ControlKit:\n%s", self.report)

    def ended(self, p: Any) -> None:
        """SD.Next's ``on_after_process``: the picture is there, or there will be none."""
        self.release()

    def _controls(self, p: Any, asked: Any, hires: bool) -> list[Control]:
        for name, what in _MORE.items():
            if getattr(p, name, False):
                raise NotApplicable(
                    script.panel.TITLE,
                    found=what,
                    expected="one pass, in SD.Next",
                    fix="Switch it off, or ControlKit's units.",
                )
        return super()._controls(p, asked, hires)

    def _target(self, model: Any) -> Target:
        return DiffusersHost(model).target()

    def _refuse(self, model: Any, error: Exception) -> None:
        denoiser = getattr(model, "unet", None) or getattr(model, "transformer", None)
        if denoiser is None:
            raise error
        self._now = script.Refusal(denoiser, error, self.release)

    def _controlled(self, model: Any, target: Target, entries: list[Entry]) -> Any:
        return _Attached(model, entries)


class Panel(script.Panel):
    """The methods of SD.Next's ``Script``."""

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.front.begin(p)


class _Attached:
    """Controls on a pipeline, and a hook that refuses to run them in another one."""

    entries: Sequence[Entry] = ()  # what they did is in ``report``

    def __init__(self, pipeline: Any, entries: list[Entry]) -> None:
        self._pipeline = pipeline
        self._host = DiffusersHost(pipeline)
        self._controls = [entry.control for entry in entries]
        self._handle: Any = None
        self._run: Run | None = None
        self._refused: type[StateError] | None = None
        self.report: Report | None = None

    def install(self) -> None:
        self._handle = self._host.unet.register_forward_pre_hook(self._check)
        self._run = attach(self._pipeline, *self._controls)

    def remove(self) -> None:
        run, self._run = self._run, None
        self._handle.remove()
        if run is not None:
            self.report = run.report()
            run.__exit__(self._refused, None, None)

    def _check(self, *_: Any) -> None:
        if not self._host.calls():
            self._refused = StateError
            raise StateError(
                "pipeline",
                found="another pipeline than the one that this picture began with",
                expected="that one",
                fix="Switch off what makes SD.Next change it, or ControlKit's units.",
            )
