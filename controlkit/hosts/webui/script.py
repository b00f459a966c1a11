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
from pathlib import Path
from typing import Any

import torch

from controlkit import guidance
from controlkit.contracts import Control
from controlkit.engine import Entry, admit
from controlkit.errors import NotApplicable, ParameterError
from controlkit.guidance import Guidance
from controlkit.hosts.webui import files, panel, pictures, units
from controlkit.hosts.webui.calls import Announced, announced
from controlkit.hosts.webui.hooks import Controlled
from controlkit.hosts.webui.host import host
from controlkit.hosts.webui.model import alpha_bar_of, decoder_of, target_of, unet_of
from controlkit.hosts.webui.units import Guide, Unit
from controlkit.hosts.written import read_options
from controlkit.module import MapModule
from controlkit.preprocessors import detectors
from controlkit.report import ControlRecord, Report

_log = logging.getLogger(__name__)
_KEPT = "controlkit_asked"


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
        self._now: Controlled | None = None
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
        model = p.sd_model
        unet = unet_of(model)
        error, entries, target = asked.error, list[Entry](), None
        try:
            target = target_of(model)
            if error is None:
                hires = bool(getattr(p, "is_hr_pass", False))
                entries = [Entry(c, ControlRecord(c.name)) for c in self._controls(p, asked, hires)]
                for entry in entries:
                    admit(entry.control, target)
        except Exception as failure:
            error = failure
        if error is not None:
            _raise_from(unet, error)
        elif entries and target is not None:
            self._now, self._p = self._controlled(model, unet, target, entries), p
            self._now.install()

    def denoising(self, params: Any) -> None:
        """The web UI's ``on_cfg_denoiser``: the U-Net is about to be called."""
        now = self._now
        if now is None:
            return
        if getattr(params.denoiser, "p", None) is not self._p:
            self.release()  # another picture: the one before it ended without telling
            return
        try:
            now.announce(announced(params))
        except Exception as error:
            now.fail(error)

    def _controlled(self, model: Any, unet: Any, target: Any, entries: list[Entry]) -> Controlled:
        def alpha_bar(step: Announced) -> float:
            return alpha_bar_of(model, step.level, timestep=step.timestep)

        return Controlled(unet, target, entries, alpha_bar=alpha_bar, decode=decoder_of(model))

    def _controls(self, p: Any, asked: Asked, hires: bool) -> list[Control]:
        wanted = ("both", "hires") if hires else ("both", "first")
        made: list[Control] = []
        for number, unit in asked.units:
            if unit.passes in wanted and unit.weight:
                made.append(_once(asked, f"unit {number}", lambda n, u=unit: control_of(u, n, p)))
        for number, guide in asked.guides:
            if guide.strength:
                made.append(_once(asked, f"guidance {number}", lambda n, g=guide: guidance_of(g, n)))
        return made


def _once(asked: Asked, name: str, make: Callable[[str], Control]) -> Control:
    if name not in asked.controls:
        asked.controls[name] = make(name)
    return asked.controls[name]


def _raise_from(unet: Any, error: Exception) -> None:
    """Have the next call of a U-Net raise an error, once."""

    def refuse(*_: Any) -> None:
        handle.remove()
        raise error

    handle = unet.register_forward_pre_hook(refuse)


def control_of(unit: Unit, name: str, p: Any) -> Control:
    """What a unit asks for.

    Args:
        unit: The unit.
        name: Of it, for errors.
        p: The web UI's processing; in img2img its picture stands in for one that the unit lacks.

    Raises:
        ControlKitError: It cannot be had.
    """
    if unit.model == units.NONE:
        raise ParameterError(f"{name}: model", found="none", expected="a control file", fix="Choose one.")
    image = pictures.read(unit.image, f"{name}: image")
    if image is None:
        image = (getattr(p, "init_images", None) or [None])[0]
    if image is None:
        raise ParameterError(f"{name}: image", found="nothing", expected="a picture")
    module = files.load(files.path_of(unit.model, folders()), dtype())
    if not isinstance(module, MapModule):
        raise NotApplicable(
            name,
            found=f"a {module.kind}",
            expected="a module that reads one map, such as a ControlNet or a T2I-Adapter",
            fix="This panel has no fields for its kind yet.",
        )
    detector = None if unit.detector == units.NONE else unit.detector
    options: dict[str, Any] = {
        "detect": detector,
        "detect_options": read_options(unit.options) if detector else None,
        "scale": unit.weight,
        "start": unit.start,
        "end": unit.end,
        "mode": unit.mode,
        "resize": unit.resize,
        "mask": pictures.read(unit.mask, f"{name}: mask"),
    }
    return module.on(image, **options)


def guidance_of(guide: Guide, name: str) -> Control:
    """What the guidance fields ask for.

    Raises:
        ControlKitError: It cannot be had.
    """
    image = pictures.read(guide.image, f"{name}: image")
    mask = pictures.read(guide.mask, f"{name}: mask")
    phi: Any
    wanted: Any = image
    if guide.function == "color":
        phi = guidance.color(mask=mask)
        wanted = guide.color if image is None else image
    elif guide.function == "edges":
        phi = guidance.edges()
    else:
        phi = guidance.region(torch.ones(1, 1, 8, 8) if mask is None else mask)
    if wanted is None:
        raise ParameterError(f"{name}: image", found="nothing", expected=f"a picture for {guide.function}")
    return Guidance(
        phi,
        wanted,
        scale=guide.strength,
        start=guide.start,
        end=guide.end,
        max_norm=guide.max_norm or None,
        normalize=guide.normalize,
        through_unet=guide.through_unet,
        name=f"guidance {guide.function}",
    )


def folders() -> list[Path]:
    """Where control files lie: the folders that were named, and the web UI's ``models/ControlNet``."""
    options = host("modules.shared").cmd_opts
    named = [getattr(options, name, None) for name in ("controlkit_dir", "controlnet_dir")]
    return [
        Path(place) for place in [*named, Path(host("modules.paths").models_path) / "ControlNet"] if place
    ]


def dtype() -> torch.dtype | None:
    """What modules compute in: the U-Net's on a GPU; float32 on CPUs, where half precision is slow."""
    devices = host("modules.devices")
    return torch.float32 if devices.device.type == "cpu" else getattr(devices, "dtype_unet", None)


class Panel:
    """The methods of the web UI's ``Script``; the file in ``scripts/`` joins it with that class.

    Args:
        front: What all tabs share.
    """

    front: Front
    is_img2img: bool
    infotext_fields: list[Any]
    paste_field_names: list[str]

    def title(self) -> str:
        return panel.TITLE

    def show(self, is_img2img: bool) -> Any:
        return host("modules.scripts").AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        names = list(files.listed(folders()))
        found = [info.name for info in detectors()]
        prefix = "img2img" if is_img2img else "txt2img"
        components, pairs = panel.build(host("gradio"), names, found, prefix)
        self.infotext_fields, self.paste_field_names = pairs, []
        return components

    def before_process(self, p: Any, *args: Any) -> None:
        self.front.release()

    def process(self, p: Any, *args: Any) -> None:
        self.front.ask(p, args)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.front.begin(p)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.front.release()

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        self.front.release()
