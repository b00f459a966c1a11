"""Our control files in Forge's own ControlNet panel and API: as more of its control models.

Forge asks every class that it was given whether it knows a file, and takes the first that does. Ours is asked
first. What Forge does not know, or would take for something else, is ours; what Forge does itself
(ControlNets, T2I-Adapters, Control-LoRAs, IP-Adapters) stays with it, but for such a file that it cannot read
after all, as one for a U-Net of another shape.

Source:
    The contract of ``modules_forge.supported_controlnet.ControlModelPatcher`` in Forge f2.0.1.
"""

# pyright: reportUnknownMemberType=false
# (what is inherited is Forge's, which is not there for the type checker)

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
_log = logging.getLogger(__name__)

_OURS = ("controlnet-union", "uni-controlnet", "style-adapter", "controlnet-difference")
"""What Forge would take for plain ControlNets, or for nothing."""
_THEIRS = ("controlnet", "t2i-adapter", "control-lora")
"""What Forge does itself, where it can read the file."""
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

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @staticmethod
    def try_build_from_state_dict(state_dict: Mapping[str, Any], ckpt_path: str) -> Any:
        """What Forge calls: the model of a file, Forge's own where it has one; None where nobody knows it."""
        kind = kind_of(state_dict)
        if kind in _THEIRS:
            found = _by_others(state_dict, ckpt_path)
            return Ours(Path(ckpt_path)) if found is None else found
        return Ours(Path(ckpt_path)) if kind in _OURS else None

    def process_before_every_sampling(
        self, process: Any, cond: Any, mask: Any, *_: Any, **given: Any
    ) -> None:
        """What Forge calls before each sampling, when it has set the strength and the window."""
        model = process.sd_model
        with torch.inference_mode(False), torch.no_grad():
            try:
                hold = self._held(model, cond, mask, given.get("params"))
            except Exception as error:  # Forge would report it to its console and go on
                hold = Hold(model, Refusal(error, lambda: hold.remove()))
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


def register() -> None:
    """Have Forge ask us first; harmless when called again, as when its page is reloaded."""
    shared = host("modules_forge.shared")
    models: list[Any] = shared.supported_control_models
    models[:] = [model for model in models if model is not Ours]
    shared.add_supported_control_model(Ours)
    models.insert(0, models.pop())


def _by_others(state: Mapping[str, Any], path: str) -> Any:
    """What Forge, or another extension, makes of a file; None where none can."""
    for kind in host("modules_forge.shared").supported_control_models:
        if kind is Ours:
            continue
        try:
            found = kind.try_build_from_state_dict(dict(state), path)  # which takes out what it has read
        except Exception as error:
            _log.info("%s cannot read %s: %s", kind.__name__, path, error)
            continue
        if found is not None:
            return found
    return None


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
