"""Forge's model, in the words of controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from controlkit.contracts import Slot, Target
from controlkit.errors import NotApplicable
from controlkit.hosts.gradients import ordinary
from controlkit.hosts.ldm import NO_ATTENTION, attention_modules, describe

Place = tuple[str, int, int]
"""Where a cross-attention layer is, as Forge's patches name it: ``input``, 1, 0."""


def target_of(patcher: Any) -> Target:
    """Describe the U-Net that Forge samples with.

    Args:
        patcher: ``forge_objects.unet``.

    Raises:
        NotApplicable: It denoises with something else than a U-Net.
    """
    unet = patcher.model.diffusion_model
    slots: tuple[Slot, ...] = ("tokens", "skips", "mid", "encoder", "noise")
    attends = hasattr(unet, "output_blocks") and any(True for _ in attention_modules(unet))
    return describe(
        unet,
        channels=int(getattr(unet, "out_channels", 4)),
        added_dim=_pooled(unet),
        pixel_scale=8,
        slots=frozenset((*slots, "attention") if attends else slots),
        refusals={} if attends else {"attention": NO_ATTENTION},
        prediction="epsilon",  # what this host hands to the engine, whatever the U-Net itself predicts
    )


def places_of(patcher: Any) -> tuple[Place, ...]:
    """The cross-attention layers in the order of `Target.attention`, by Forge's names."""
    found: list[Place] = []
    for name, _, _ in attention_modules(patcher.model.diffusion_model):
        parts = name.split(".")  # input_blocks.1.1.transformer_blocks.0.attn2
        block = parts[0].partition("_")[0]
        number = 0 if block == "middle" else int(parts[1])
        depth = int(parts[parts.index("transformer_blocks") + 1]) if "transformer_blocks" in parts else 0
        found.append((block, number, depth))
    return tuple(found)


def decoder_of(model: Any) -> Callable[[Tensor], Tensor]:
    """From clean latents to pixels in [-1, 1], with gradients where they are on.

    Args:
        model: What Forge calls ``sd_model``.
    """
    vae = model.forge_objects.vae
    stage: nn.Module = vae.first_stage_model
    done: list[int] = []

    def decode(latents: Tensor) -> Tensor:
        if not done:
            done.append(exchanged(stage, "decoder"))
        weight = next(stage.parameters())
        plain: Tensor = vae.first_stage_model.process_out(latents)
        return vae.first_stage_model.decode(plain.to(weight.device, vae.vae_dtype)).to(latents.device).float()

    return decode


def weights_of(patcher: Any) -> dict[str, Tensor]:
    """The U-Net's own weights by their original names, not copied; with the LoRAs that Forge has put in.

    Raises:
        NotApplicable: They are stored in a form of Forge's own (NF4, GGUF), to which nothing can be added.
    """
    unet: nn.Module = patcher.model.diffusion_model
    _check_plain(unet, "control", "U-Net")
    return {name: value.detach() for name, value in unet.state_dict().items()}


def exchanged(module: nn.Module, name: str) -> int:
    """Make weights that inference mode made ordinary, so that gradients can pass; the numbers stay the same.

    Returns:
        How many there were.

    Raises:
        NotApplicable: They are stored in a form of Forge's own (NF4, GGUF), of which there is no such copy.
    """
    _check_plain(module, "guidance", name)
    return ordinary(module)


def _check_plain(module: nn.Module, place: str, name: str) -> None:
    for parameter in module.parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise NotApplicable(
                place,
                found=f"a {name} with weights in low bits ({type(parameter).__name__}, {parameter.dtype})",
                expected="weights in float32, float16 or bfloat16",
                fix="Set 'Diffusion in Low Bits' to Automatic and use a checkpoint that is not quantized.",
            )


def _pooled(unet: Any) -> int | None:
    if getattr(unet, "num_classes", None) != "sequential":
        return None
    return int(unet.label_emb[0][0].in_features)
