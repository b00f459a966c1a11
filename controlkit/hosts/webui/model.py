"""The web UI's model, in the words of controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from controlkit.contracts import Slot, Target
from controlkit.errors import NotApplicable
from controlkit.hosts.ldm import NO_ATTENTION, describe, places_of


def unet_of(model: Any) -> Any:
    """The U-Net of a loaded model.

    Args:
        model: The web UI's ``shared.sd_model``: LDM's ``LatentDiffusion`` or sgm's ``DiffusionEngine``.

    Raises:
        NotApplicable: It has no such part.
    """
    found = getattr(getattr(model, "model", None), "diffusion_model", None)
    if found is None:
        raise NotApplicable(
            "model",
            found=f"a {type(model).__name__}",
            expected="a model that denoises with a U-Net (Stable Diffusion 1.x, 2.x, XL)",
            fix="Switch ControlKit's units off for this model.",
        )
    return found


def target_of(model: Any) -> Target:
    """Describe the U-Net of a loaded model.

    Raises:
        NotApplicable: It denoises with something else than a U-Net.
    """
    unet = unet_of(model)
    attends = bool(places_of(unet))
    slots: tuple[Slot, ...] = ("tokens", "skips", "mid", "encoder", "noise")
    velocity = getattr(model, "parameterization", "eps") == "v"
    return describe(
        unet,
        channels=int(getattr(unet, "out_channels", 4)),
        added_dim=_pooled(unet),
        pixel_scale=8,
        slots=frozenset((*slots, "attention") if attends else slots),
        refusals={} if attends else {"attention": NO_ATTENTION},
        prediction="v_prediction" if velocity else "epsilon",
    )


def decoder_of(model: Any) -> Callable[[Tensor], Tensor]:
    """From clean latents to pixels in [-1, 1], with gradients where they are on."""

    def decode(latents: Tensor) -> Tensor:
        stage = model.first_stage_model
        weight: Tensor = next(stage.parameters())
        plain = (latents / model.scale_factor).to(weight.device, weight.dtype)
        return stage.decode(plain).to(latents.device).float()

    return decode


def alpha_bar_of(model: Any, level: float, *, timestep: bool) -> float:
    """ᾱ of a noise level.

    Args:
        model: The web UI's model.
        level: What its samplers go by: sigma, noise over signal, or a timestep.
        timestep: Whether it is the latter.
    """
    if not timestep:
        return 1.0 / (1.0 + level**2)
    table: Tensor = model.alphas_cumprod
    return float(table[min(max(round(level), 0), len(table) - 1)])


def _pooled(unet: Any) -> int | None:
    if getattr(unet, "num_classes", None) != "sequential":
        return None
    return int(unet.label_emb[0][0].in_features)
