"""Control files for the slim checkpoint, with random weights; in diffusers' layout."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tests.hosts.forge.server import Server

UNET = {"num_heads": 8}
"""What the checkpoint's shapes do not tell."""


@lru_cache(maxsize=1)
def slim_unet(base: Path) -> Any:
    """The checkpoint's U-Net, as diffusers has it."""
    import controlkit as ck

    return ck.unet(base / "models" / "Stable-diffusion" / Server.checkpoint, UNET).float().eval()


@lru_cache(maxsize=1)
def slim_pipeline(base: Path) -> Any:
    """The checkpoint's U-Net and decoder as a pipeline of diffusers', which has no text encoder."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    coder: Any = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    weights = load_file(base / "models" / "Stable-diffusion" / Server.checkpoint)
    coder.load_state_dict(convert_ldm_vae_checkpoint(weights, coder.config))
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(
        vae=coder.float().eval(),
        unet=slim_unet(base),
        scheduler=EulerDiscreteScheduler(),
        requires_safety_checker=False,
        **none,
    )


def write(base: Path) -> None:
    """Two ControlNets, an adapter, and a ControlNet whose numbers overflow, in the ControlNet folder."""
    from diffusers import ControlNetModel, T2IAdapter

    unet = slim_unet(base)
    folder = base / "models" / "ControlNet"
    for name, seed, size in (("net-a", 1, 0.02), ("net-b", 2, 0.02), ("overflow", 3, 1e30)):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
        randomized(net, size).save_pretrained(folder / name)
    torch.manual_seed(4)
    adapter = T2IAdapter(channels=[320, 320], num_res_blocks=1, adapter_type="full_adapter")
    randomized(adapter, 0.02).save_pretrained(folder / "adapter")


def randomized(net: Any, size: float) -> Any:
    """The network with random numbers where it had zeros."""
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=size)
    return net
