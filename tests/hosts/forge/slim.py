"""Run inside Forge's environment: write a slim checkpoint that Forge takes for Stable Diffusion 1.5.

    python slim.py FORGE_FOLDER BASE_FOLDER

Two levels of 320 channels with one block each are a U-Net of 44 M parameters; its text encoder and its
decoder have the sizes that Forge expects of that model. All weights are random, in half precision (0.5 GB).
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
}


def main(forge: str, base: str) -> None:
    sys.argv = [sys.argv[0], "--always-cpu"]
    sys.path[:0] = [forge, str(Path(forge) / "packages_3rdparty")]
    import torch
    from safetensors.torch import save_file

    known = Path(forge) / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5"
    transformers = import_module("transformers")
    coder = import_module("backend.nn.vae").IntegratedAutoencoderKL
    parts = {
        "model.diffusion_model": import_module("backend.nn.unet").IntegratedUNet2DConditionModel(**UNET),
        "first_stage_model": coder.from_config(coder.load_config(known / "vae")),
        "cond_stage_model.transformer": transformers.CLIPTextModel(
            transformers.CLIPTextConfig.from_pretrained(known / "text_encoder")
        ),
    }
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for prefix, part in parts.items():
        for name, value in part.state_dict().items():
            if not value.is_floating_point():
                made = value
            elif value.ndim > 1:
                made = torch.randn(value.shape, generator=generator) * 0.7 / value[0].numel() ** 0.5
            else:  # not all 1 and 0: Forge divides by the mean of what the text encoder returns
                level = float(name.endswith("weight"))
                made = level + torch.randn(value.shape, generator=generator) * 0.1
            half = made.half() if made.is_floating_point() else made
            state[f"{prefix}.{name}"] = half.contiguous()
    folder = Path(base) / "models" / "Stable-diffusion"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "slim.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:3])
