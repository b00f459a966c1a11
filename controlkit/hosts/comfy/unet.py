"""What ComfyUI's own U-Net is, in the words that controls understand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from controlkit.contracts import Slot, Target
from controlkit.hosts.comfy.host import host
from controlkit.hosts.ldm import NO_ATTENTION, describe, places_of

_PATCH = "In ComfyUI this goes into the MODEL: use the node that is made for its kind."
_NOISE = "In ComfyUI guidance has nodes of its own."


def target_of(model: Any, *, patched: bool = False) -> Target:
    """Describe the U-Net of a loaded model.

    Args:
        model: ComfyUI's ``BaseModel``.
        patched: Whether a patch of the MODEL adds to it, or a CONTROL_NET and guidance.

    Raises:
        NotApplicable: It denoises with something else than a U-Net.
    """
    slots: tuple[Slot, ...] = ("skips", "mid", "encoder", "noise")
    refusals: dict[Slot, str] = {"tokens": _PATCH, "attention": _PATCH}
    if patched:
        attends = bool(places_of(model.diffusion_model))
        slots = ("skips", "mid", "encoder", "tokens", *(("attention",) if attends else ()))
        refusals = {"noise": _NOISE, "attention": NO_ATTENTION}
    return describe(
        model.diffusion_model,
        channels=int(model.latent_format.latent_channels),
        added_dim=int(getattr(model, "adm_channels", 0) or 0) or None,
        pixel_scale=int(getattr(model.latent_format, "spacial_downscale_ratio", 8)),
        slots=frozenset(slots),
        refusals=refusals,
        prediction="epsilon",  # what this host hands to the engine, whatever the U-Net itself predicts
    )


def weights_of(model: Any) -> dict[str, Tensor]:
    """The U-Net's own weights by diffusers' names, not copied; as ComfyUI has patched them by now."""
    names: dict[str, str] = host("comfy.utils").unet_to_diffusers(model.model_config.unet_config)
    state: dict[str, Tensor] = model.diffusion_model.state_dict()
    return {ours: state[theirs].detach() for ours, theirs in names.items() if theirs in state}
