"""Our control files in Forge's own ControlNet panel and API: as more of its control models.

Forge asks every class that it was given whether it knows a file, the first that does is taken. What Forge
does itself (ControlNets, T2I-Adapters, Control-LoRAs, IP-Adapters) stays with it, where it recognises the
file; what it does not know, or would take for something else, is ours.

Source:
    The contract of ``modules_forge.supported_controlnet.ControlModelPatcher`` in Forge f2.0.1.
"""

# pyright: reportUnknownMemberType=false
# (what is inherited is Forge's, which is not there for the type checker)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from controlkit.checkpoints.formats import recognise, unwrap
from controlkit.contracts import Control
from controlkit.engine import Entry, admit
from controlkit.errors import ControlKitError, NotApplicable, ParameterError
from controlkit.hosts.forge.control import Hold, Refusal
from controlkit.hosts.forge.detectors import BEFORE, Picture, shown_by
from controlkit.hosts.forge.model import target_of
from controlkit.hosts.forge.script import held
from controlkit.hosts.webui import controls, encoders, files, units
from controlkit.hosts.webui.host import host
from controlkit.module import ControlModule, MapModule
from controlkit.report import ControlRecord

_Base: Any = host("modules_forge.supported_controlnet").ControlModelPatcher
_WEIGHTINGS = (
    *("positive_advanced_weighting", "negative_advanced_weighting"),
    *("advanced_frame_weighting", "advanced_sigma_weighting"),
)
"""What Forge's control modes, and other extensions, multiply residuals with."""


class Ours(_Base):
    """A control file; one of it serves all units that name the file.

    Args:
        path: The file.
    """

    kinds: ClassVar[tuple[str, ...]] = (
        *("controlnet-union", "uni-controlnet", "style-adapter"),
        "controlnet-difference",
    )
    """What it takes before Forge is asked: Forge would take these for plain ControlNets, or for nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @classmethod
    def try_build_from_state_dict(cls, state_dict: Mapping[str, Any], ckpt_path: str) -> Ours | None:
        """What Forge calls: the model of a file, or None where the file is not for this class."""
        return cls(Path(ckpt_path)) if kind_of(state_dict) in cls.kinds else None

    def process_before_every_sampling(
        self, process: Any, cond: Any, mask: Any, *_: Any, **given: Any
    ) -> None:
        """What Forge calls before each sampling, when it has set the strength and the window."""
        model = process.sd_model
        with torch.inference_mode(False), torch.no_grad():
            try:
                hold = self._held(model, cond, mask, given.get("params"))
            except Exception as error:  # Forge would report it to its console and go on
                hold = Hold(model, Refusal(error, _nothing))
        hold.install()

    def _held(self, model: Any, cond: Any, mask: Any, params: Any) -> Hold:
        module = files.load(self.path, files.dtype())
        shows = shown_by(getattr(params, "preprocessor", None))
        control = bound(module, cond, shows, float(self.strength))
        target = target_of(model.forge_objects.unet)
        admit(control, target)
        residuals = bool(control.slots & {"skips", "mid", "encoder"})
        if mask is not None and not residuals:
            raise NotApplicable(
                control.name,
                found="a mask",
                expected="none",
                fix="Its tokens act on the whole picture.",
            )
        hold = held(model, target, [Entry(control, ControlRecord(control.name))], lambda: hold.remove())
        ours = hold.control
        ours.set_cond_hint(None, 1.0, (float(self.start_percent), float(self.end_percent)))
        for name in _WEIGHTINGS:
            setattr(ours, name, getattr(self, name))
        ours.advanced_mask_weighting = mask
        return hold


class Rest(Ours):
    """Files of the kinds that Forge does itself, of which it did not recognise this one."""

    kinds = ("controlnet", "t2i-adapter", "control-lora")


def kind_of(state: Mapping[str, Any]) -> str | None:
    """What kind of control some weights are, by names and shapes; None where they are none that is known."""
    shapes = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    prefix, _ = unwrap(shapes)
    try:
        return recognise({name.removeprefix(prefix): shape for name, shape in shapes.items()}, "file").kind
    except ControlKitError:
        return None


def bound(module: ControlModule, cond: Any, shows: str | None, scale: float) -> Control:
    """A module of Forge's panel, bound to what its preprocessor made.

    Args:
        module: The network.
        cond: (B, 3, H, W) in [0, 1], a map; or a `Picture`.
        shows: What the preprocessor's maps show, or `controls.CONTENT`; None where that is not told.
        scale: 0 is off, 1 as trained.

    Raises:
        ControlKitError: They do not go together.
    """
    from controlkit.adapters.controlnet_union import ControlNetUnion
    from controlkit.adapters.style_adapter import StyleAdapter
    from controlkit.adapters.uni_controlnet import UniControlNet

    whole = isinstance(cond, Picture)
    reads = isinstance(module, StyleAdapter) or (
        isinstance(module, UniControlNet) and shows == controls.CONTENT
    )
    if whole != reads:
        raise ParameterError(
            f"{module.kind}: preprocessor",
            found="one for whole pictures" if whole else "one for maps, or none",
            expected="one for maps" if whole else f"'{BEFORE} whole picture'",
            fix="Choose it in the list of preprocessors.",
        )
    if whole:
        encoder = encoders.encoder_of(units.AUTOMATIC, module, files.encoder_folders())
        if isinstance(module, StyleAdapter):
            return module.on(cond.pixels, encoder=encoder, scale=scale)
        assert isinstance(module, UniControlNet)
        return module.on(content=cond.pixels, encoder=encoder, global_scale=scale)
    maps = cond.detach().float().clamp(0, 1).clone()
    if isinstance(module, UniControlNet):
        return module.on({_condition(shows, module.conditions): maps}, local_scale=scale)
    if isinstance(module, ControlNetUnion):
        return module.on({_condition(shows, controls.types_of(module)): maps}, scale=scale)
    if isinstance(module, MapModule):
        return module.on(maps, scale=scale)
    raise NotApplicable(module.kind, found="Forge's own panel", expected=f"the panel '{BEFORE}'")


def _condition(shows: str | None, known: tuple[str, ...]) -> str:
    found = None if shows is None else controls.condition_of(units.Unit(condition=shows), known)
    if found is None:
        raise ParameterError(
            "preprocessor",
            found="none that tells what the map shows" if shows is None else f"one whose maps show {shows}",
            expected=f"one for maps of {', '.join(known)}",
            fix=f"For a map that is ready choose '{BEFORE} map: ...' in the list of preprocessors.",
        )
    return found


def _nothing() -> None: ...
