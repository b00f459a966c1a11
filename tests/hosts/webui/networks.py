"""Control files for the tiny checkpoint, with random weights; in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

UNET = {"num_heads": 4}
"""What the checkpoint's shapes do not tell."""
FILE = "diffusion_pytorch_model.safetensors"
OTHERS = {"tiny-shaped": {"num_heads": 8}, "tiny-xl": {"num_heads": 4, "addition_time_embed_dim": 256}}


def tiny_unet(base: Path, name: str = "tiny") -> Any:
    """A checkpoint's U-Net, as diffusers has it."""
    import controlkit as ck

    place = base / "models" / "Stable-diffusion" / f"{name}.safetensors"
    return ck.unet(place, OTHERS.get(name, UNET))


def tiny_pipeline(base: Path, name: str = "tiny") -> Any:
    """A checkpoint's U-Net and decoder as a pipeline of diffusers', which has no text encoder."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    coder: Any = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=0.13025 if name == "tiny-xl" else 0.18215,
    )
    weights = load_file(base / "models" / "Stable-diffusion" / f"{name}.safetensors")
    coder.load_state_dict(convert_ldm_vae_checkpoint(weights, coder.config))
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    schedule = EulerDiscreteScheduler()
    unet = tiny_unet(base, name)
    if name == "tiny-xl":
        more = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        return StableDiffusionXLPipeline(
            vae=coder.eval(), unet=unet, scheduler=schedule, add_watermarker=False, **more
        )
    return StableDiffusionPipeline(
        vae=coder.eval(), unet=unet, scheduler=schedule, requires_safety_checker=False, **none
    )


def write(base: Path, name: str = "tiny") -> None:
    """Two ControlNets, an adapter, and a ControlNet whose numbers overflow, in the ControlNet folder.

    Args:
        base: The web UI's data.
        name: Of the checkpoint that they are for; theirs end on what it has after ``tiny``.
    """
    from diffusers import ControlNetModel

    unet = tiny_unet(base, name)
    ending = name.removeprefix("tiny")
    folder = base / "models" / "ControlNet"
    for net, seed, size in (("net-a", 1, 0.1), ("net-b", 2, 0.1), ("overflow", 3, 1e30)):
        torch.manual_seed(seed)
        made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
        _random(made, size)
        made.save_pretrained(folder / f"{net}{ending}")
    torch.manual_seed(4)
    made = _adapter(name)
    _random(made, 0.1)
    made.save_pretrained(folder / f"adapter{ending}")


def _adapter(name: str) -> Any:
    from diffusers import T2IAdapter

    if name == "tiny-xl":
        widths = [32, 64, 128, 128]
        return T2IAdapter(channels=widths, downscale_factor=16, adapter_type="full_adapter_xl")
    return T2IAdapter(channels=[32, 64], num_res_blocks=1, adapter_type="full_adapter")


def write_theirs(base: Path) -> None:
    """For ``tiny-shaped``: files that sd-webui-controlnet reads too, each with a name, by which it goes."""
    from diffusers import ControlNetModel, T2IAdapter

    unet = tiny_unet(base, "tiny-shaped")
    folder = base / "models" / "ControlNet"
    torch.manual_seed(5)
    nets: dict[str, Any] = {"theirs-net": ControlNetModel.from_unet(unet)}
    torch.manual_seed(6)
    nets["theirs-adapter"] = T2IAdapter(channels=[32, 64, 128, 128], adapter_type="full_adapter")
    for name, net in nets.items():
        _random(net, 0.1)
        net.save_pretrained(folder / name)
        (folder / name / FILE).rename(folder / name / f"{name}.safetensors")


def _random(net: torch.nn.Module, size: float) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=size)
