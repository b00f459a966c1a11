"""What happens when, while the web UI makes a picture.

The web UI reports errors in scripts to its console and goes on, with a picture that is not controlled. So
an error of ours is kept, and raised by a hook when the U-Net is called: the picture ends with it, and the one
who asked is told. Before the error is passed on nothing of ours is left on the model.

Only one picture is made at a time, so what is in force is one thing for all tabs: `Front`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from controlkit.contracts import Control, Target
from controlkit.engine import Entry, admit
from controlkit.hosts.ldm import places_of
from controlkit.hosts.webui import controls, panel, units
from controlkit.hosts.webui.calls import Announced, announced
from controlkit.hosts.webui.hooks import Controlled
from controlkit.hosts.webui.host import host
from controlkit.hosts.webui.model import alpha_bar_of, decoder_of, target_of, unet_of
from controlkit.hosts.webui.units import Guide, Unit
from controlkit.report import ControlRecord, Report

_log = logging.getLogger(__name__)
_KEPT = "controlkit_asked"
_PROMPTS = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")
"""Where the web UI keeps encoded prompts from one picture to the next."""


class Refusal:
    """An error that waits for the U-Net to be called: in place of controls, and off with their picture.

    Args:
        unet: What is called.
        error: What is wrong.
        ended: Called before it is raised.
    """

    entries: Sequence[Entry] = ()

    def __init__(self, unet: Any, error: Exception, ended: Callable[[], None]) -> None:
        def refuse(*_: Any) -> None:
            ended()
            raise error

        self._handle = unet.register_forward_pre_hook(refuse)

    def announce(self, step: Announced) -> None:
        """Nothing is to be known of the call."""

    def fail(self, error: Exception) -> None:
        """It fails already."""

    def remove(self) -> None:
        """Take it off; harmless when called twice."""
        self._handle.remove()


@dataclass
class Asked:
    """What one picture, or one batch, was asked to have; the modules and maps of its units are read once."""

    units: list[tuple[int, Unit]] = field(default_factory=list[tuple[int, Unit]])
    guides: list[tuple[int, Guide]] = field(default_factory=list[tuple[int, Guide]])
    error: Exception | None = None
    controls: dict[str, Control] = field(default_factory=dict[str, Control])

    def __bool__(self) -> bool:
        return bool(self.units or self.guides or self.error)


class Front:
    """Everything of ours that is in force in the web UI: at most one picture's controls."""

    def __init__(self) -> None:
        self._p: Any = None
        self._now: Any = None
        self._under_way = False
        self.report: Report | None = None

    def release(self) -> None:
        """Take everything off the model; harmless when there is nothing."""
        now, self._now, self._p = self._now, None, None
        if now is None:
            return
        now.remove()
        self.report = Report(tuple(entry.record.row() for entry in now.entries))
        if self.report.rows:
            _log.info("ControlKit:\n%s", self.report)

    def done(self) -> None:
        """A picture is finished."""
        self._under_way = False
        self.release()

    def next(self, p: Any) -> None:
        """A picture begins. After one that failed the prompts are encoded anew.

        sd-webui-controlnet marks the prompts that the web UI keeps, and takes the marks off in the call of
        the U-Net that one of our errors may have ended before.
        """
        self.release()
        failed, self._under_way = self._under_way, False
        for name in _PROMPTS if failed else ():
            kept = getattr(p, name, None)
            if isinstance(kept, list):
                kept[:] = [None] * len(cast("list[Any]", kept))

    def ask(self, p: Any, args: Sequence[Any]) -> None:
        """Read what the panel or the request asks for, and note it in the picture's parameters."""
        asked = Asked()
        try:
            asked.units, asked.guides = units.read(args)
            for number, unit in asked.units:
                p.extra_generation_params[f"{panel.TITLE} {number}"] = units.describe(unit)
            for _, guide in asked.guides:
                p.extra_generation_params[f"{panel.TITLE} guidance"] = units.describe(guide)
        except Exception as error:
            asked.error = error
        setattr(p, _KEPT, asked)

    def begin(self, p: Any) -> None:
        """Put the controls of one sampling on the model."""
        self.release()
        asked: Asked | None = getattr(p, _KEPT, None)
        if not asked:
            return
        self._under_way = True
        model = p.sd_model
        error, entries, target = asked.error, list[Entry](), None
        try:
            target = self._target(model)
            if error is None:
                hires = bool(getattr(p, "is_hr_pass", False))
                entries = [Entry(c, ControlRecord(c.name)) for c in self._controls(p, asked, hires)]
                for entry in entries:
                    admit(entry.control, target)
        except Exception as failure:
            error = failure
        if error is not None:
            self._p = p
            self._refuse(model, error)
        elif entries and target is not None:
            self._now, self._p = self._controlled(model, target, entries), p
            self._now.install()

    def denoising(self, params: Any) -> None:
        """The web UI's ``on_cfg_denoiser``: the U-Net is about to be called."""
        now = self._now
        if now is None:
            return
        if getattr(params.denoiser, "p", None) is not self._p:
            self.release()  # another picture: the one before it ended without telling
            return
        self._announce(params)

    def _announce(self, params: Any) -> None:
        try:
            self._now.announce(announced(params))
        except Exception as error:
            self._now.fail(error)

    def _target(self, model: Any) -> Target:
        return target_of(model)

    def _refuse(self, model: Any, error: Exception) -> None:
        """Have the next call of a model's U-Net raise an error, in this picture."""
        self._now = Refusal(unet_of(model), error, self.release)

    def _controlled(self, model: Any, target: Target, entries: list[Entry]) -> Any:
        """What puts the controls on the model and takes them off: ``install``, ``remove``, ``entries``."""

        def alpha_bar(step: Announced) -> float:
            return alpha_bar_of(model, step.level, timestep=step.timestep)

        return Controlled(
            unet_of(model),
            target,
            entries,
            alpha_bar=alpha_bar,
            decode=decoder_of(model),
            places=places_of(unet_of(model)),
        )

    def _controls(self, p: Any, asked: Asked, hires: bool) -> list[Control]:
        wanted = ("both", "hires") if hires else ("both", "first")
        made: list[Control] = []
        chosen = [(number, unit) for number, unit in asked.units if unit.passes in wanted and unit.weight]
        made += controls.of_units(chosen, p, asked.controls)
        for number, guide in asked.guides:
            if guide.strength:
                made.append(_once(asked, f"guidance {number}", lambda n, g=guide: controls.guidance_of(g, n)))
        return made


def _once(asked: Asked, name: str, make: Callable[[str], Control]) -> Control:
    if name not in asked.controls:
        asked.controls[name] = make(name)
    return asked.controls[name]


class Panel:
    """The methods of the web UI's ``Script``; the file in ``scripts/`` joins it with that class.

    Args:
        front: What all tabs share.
    """

    front: Front
    is_img2img: bool
    infotext_fields: list[Any]
    paste_field_names: list[str]

    sizes: dict[str, Any]

    def title(self) -> str:
        return panel.TITLE

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """Remember the tab's own sliders for width and height, whose values the preview is made for."""
        name = kwargs.get("elem_id")
        if name in panel.SIZES:
            self.sizes = {**getattr(self, "sizes", {}), name: component}

    def show(self, is_img2img: bool) -> Any:
        return host("modules.scripts").AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        prefix = "img2img" if is_img2img else "txt2img"
        sizes = [getattr(self, "sizes", {}).get(f"{prefix}_{name}") for name in ("width", "height")]
        components, pairs = panel.build(host("gradio"), prefix, sizes)
        self.infotext_fields, self.paste_field_names = pairs, []
        return components

    def before_process(self, p: Any, *args: Any) -> None:
        self.front.next(p)

    def process(self, p: Any, *args: Any) -> None:
        self.front.ask(p, args)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.front.begin(p)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.front.release()

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        self.front.done()
