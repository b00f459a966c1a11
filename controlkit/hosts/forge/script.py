"""What happens when, while Forge makes a picture: as in `controlkit.hosts.webui.script`, by Forge's means.

Nothing is hooked: each sampling gets a copy of the U-Net's patcher with one more ControlNet on it, which
Forge drops with the picture. An error of ours is raised by that ControlNet, where Forge cannot overlook it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from controlkit.contracts import Target
from controlkit.engine import Entry
from controlkit.hosts.forge.control import EngineControl, Hold, Refusal
from controlkit.hosts.forge.model import decoder_of, places_of, target_of, weights_of
from controlkit.hosts.forge.running import Clock, Running
from controlkit.hosts.webui import script

CLOCK = Clock()
"""The step that Forge's denoiser is at; of one picture, as only one is made at a time."""


class Front(script.Front):
    """Everything of ours that is in force in Forge: at most one picture's controls."""

    def begin(self, p: Any) -> None:
        """Put the controls of one sampling on the model."""
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # Forge's own mode leaves tensors without gradients
            super().begin(p)

    def denoising(self, params: Any) -> None:
        """Forge's ``on_cfg_denoiser``: the U-Net is about to be called."""
        CLOCK.tick(params.denoiser)
        super().denoising(params)

    def _announce(self, params: Any) -> None: ...

    def _target(self, model: Any) -> Target:
        return target_of(model.forge_objects.unet)

    def _refuse(self, model: Any, error: Exception) -> None:
        self._now = Hold(model, Refusal(error, self.release))
        self._now.install()

    def _controlled(self, model: Any, target: Target, entries: list[Entry]) -> Hold:
        return held(model, target, entries, self.release)


def held(model: Any, target: Target, entries: list[Entry], ended: Any) -> Hold:
    """Controls as one more ControlNet of Forge's model.

    Args:
        model: Forge's ``sd_model``.
        target: Its U-Net, described.
        entries: The controls.
        ended: Called when anything goes wrong, before the error is passed on.
    """
    patcher, vae = model.forge_objects.unet, model.forge_objects.vae

    def weights() -> dict[str, Tensor]:
        return weights_of(patcher)

    running = Running(
        entries,
        target,
        patcher.model.predictor,
        CLOCK,
        places=places_of(patcher),
        decode=decoder_of(model),
        decoder=vae.first_stage_model,
        weights=weights,
    )
    hold = Hold(model, EngineControl(running, ended), entries)
    if running.guides or "attention" in {slot for entry in entries for slot in entry.control.slots}:
        control = hold.control

        # A function, not a method: Forge copies options deeply, and with methods what they belong to.
        def guide(args: Mapping[str, Any]) -> Tensor:
            return control.guided(args)

        hold.patcher.set_model_sampler_post_cfg_function(guide)
    if running.guides:
        hold.patcher.add_extra_model_patcher_during_sampling(vae.patcher)
    return hold
