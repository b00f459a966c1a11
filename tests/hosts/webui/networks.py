"""Control files for the tiny checkpoint, with random weights; in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

UNET = {"num_heads": 4}
"""What the checkpoint's shapes do not tell."""


def tiny_unet(base: Path) -> Any:
    """The checkpoint's U-Net, as diffusers has it."""
    import controlkit as ck

    return ck.unet(base / "models" / "Stable-diffusion" / "tiny.safetensors", UNET)


def tiny_pipeline(base: Path) -> Any:
    """The checkpoint's U-Net and decoder as a pipeline of diffusers', which has no text encoder."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    coder: Any = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
    )
    weights = load_file(base / "models" / "Stable-diffusion" / "tiny.safetensors")
    coder.load_state_dict(convert_ldm_vae_checkpoint(weights, coder.config))
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    schedule = EulerDiscreteScheduler()
    return StableDiffusionPipeline(
        vae=coder.eval(), unet=tiny_unet(base), scheduler=schedule, requires_safety_checker=False, **none
    )


def write(base: Path) -> None:
    """Two ControlNets, an adapter, and a ControlNet whose numbers overflow, in the ControlNet folder."""
    from diffusers import ControlNetModel, T2IAdapter

    unet = tiny_unet(base)
    folder = base / "models" / "ControlNet"
    for name, seed, size in (("net-a", 1, 0.1), ("net-b", 2, 0.1), ("overflow", 3, 1e30)):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
        _random(net, size)
        net.save_pretrained(folder / name)
    torch.manual_seed(4)
    adapter = T2IAdapter(channels=[32, 64], num_res_blocks=1, adapter_type="full_adapter")
    _random(adapter, 0.1)
    adapter.save_pretrained(folder / "adapter")


def _random(net: torch.nn.Module, size: float) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=size)
