"""Run inside ComfyUI's environment: write a slim U-Net of Stable Diffusion 1.5 and controls for it.

    python slim.py COMFYUI_FOLDER MODELS_FOLDER

Two levels of 320 channels are recognised as Stable Diffusion 1.5 and are 44 M parameters; weights are random.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

SHAPE = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
}


def main(comfy: str, models: str) -> None:
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, comfy)
    import_module("comfy.options").enable_args_parsing()
    import torch
    from safetensors.torch import save_file

    control_net = import_module("comfy.cldm.cldm").ControlNet
    unet_model = import_module("comfy.ldm.modules.diffusionmodules.openaimodel").UNetModel

    def state(model: torch.nn.Module, seed: int, gain: float) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made: dict[str, torch.Tensor] = {}
        for name, value in model.state_dict().items():
            if value.ndim > 1:
                spread = gain / value[0].numel() ** 0.5
                made[name] = torch.randn(value.shape, generator=generator) * spread
            else:
                made[name] = torch.full(value.shape, float(name.endswith("weight")))
        return made

    with torch.no_grad():
        unet = unet_model(**SHAPE, out_channels=4, transformer_depth_output=[1, 1, 1, 1])
        folder = Path(models) / "diffusion_models"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state(unet, 0, 0.7), folder / "slim.safetensors")
        folder = Path(models) / "controlnet"
        folder.mkdir(parents=True, exist_ok=True)
        for name, seed in (("slim_a", 1), ("slim_b", 2)):
            net = control_net(**SHAPE, hint_channels=3)
            weights = {f"control_model.{key}": value for key, value in state(net, seed, 0.7).items()}
            save_file(weights, folder / f"{name}.safetensors")
        lora = {"lora_controlnet": torch.zeros(0)}
        generator = torch.Generator().manual_seed(3)
        shared = unet.state_dict()
        for key, value in state(control_net(**SHAPE, hint_channels=3), 4, 0.7).items():
            if key not in shared or value.ndim == 1:
                lora[key] = value
            else:
                stem = key.removesuffix(".weight")
                lora[f"{stem}.up"] = (
                    torch.randn(len(value), 4, *[1] * (value.ndim - 2), generator=generator) * 0.05
                )
                lora[f"{stem}.down"] = torch.randn(4, *value.shape[1:], generator=generator) * 0.05
        save_file(lora, folder / "slim_lora.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:3])
