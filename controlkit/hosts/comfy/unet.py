"""What ComfyUI's own U-Net is, in the words that controls understand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from controlkit.contracts import Slot, Target
from controlkit.hosts.attention import Place
from controlkit.hosts.comfy.host import host
from controlkit.hosts.ldm import attention_modules, describe

_PATCH = "In ComfyUI this goes into the MODEL: use the node that is made for its kind."
_NOISE = "In ComfyUI guidance has nodes of its own."
_NONE = "This U-Net has no cross-attention layers, so that there is nothing to add a picture's tokens to."


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
        refusals = {"noise": _NOISE, "attention": _NONE}
    return describe(
        model.diffusion_model,
        channels=int(model.latent_format.latent_channels),
        added_dim=int(getattr(model, "adm_channels", 0) or 0) or None,
        pixel_scale=int(getattr(model.latent_format, "spacial_downscale_ratio", 8)),
        slots=frozenset(slots),
        refusals=refusals,
        prediction="epsilon",  # what this host hands to the engine, whatever the U-Net itself predicts
    )


def places_of(unet: Any) -> tuple[Place, ...]:
    """The cross-attention layers of a U-Net, in the order of `Target.attention`; none where it has others."""
    found = list(attention_modules(unet)) if hasattr(unet, "output_blocks") else []
    if not all(hasattr(module, "heads") and hasattr(module, "to_out") for _, module, _ in found):
        return ()
    return tuple(Place(*one) for one in found)


def weights_of(model: Any) -> dict[str, Tensor]:
    """The U-Net's own weights by diffusers' names, not copied; as ComfyUI has patched them by now."""
    names: dict[str, str] = host("comfy.utils").unet_to_diffusers(model.model_config.unet_config)
    state: dict[str, Tensor] = model.diffusion_model.state_dict()
    return {ours: state[theirs].detach() for ours, theirs in names.items() if theirs in state}
