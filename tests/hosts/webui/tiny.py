"""Run inside the web UI's environment: write a tiny checkpoint of Stable Diffusion 1's kind.

    python tiny.py WEBUI_FOLDER BASE_FOLDER

3 M parameters with random weights, with a config beside it (as the web UI takes it), and a tokenizer whose
words are those of open-clip's own table, so that nothing is fetched.
"""

from __future__ import annotations

import gzip
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [1, 2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 32,
    "use_checkpoint": False,
    "legacy": False,
}
DECODER: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
}


def config(version: Path) -> dict[str, Any]:
    """The model's config, in the original project's form."""
    ldm = "ldm.modules"
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {"target": f"{ldm}.diffusionmodules.openaimodel.UNetModel", "params": UNET},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": 4,
                "ddconfig": DECODER,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {
            "target": f"{ldm}.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": str(version)},
        },
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def tokenizer(folder: Path) -> None:
    """CLIP's vocabulary and merges as transformers reads them, made from open-clip's table."""
    module = import_module("open_clip.tokenizer")
    with gzip.open(module.default_bpe(), "rt", encoding="utf-8") as file:
        table = file.read().split("\n")
    merges = table[1 : 49152 - 256 - 2 + 1]
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(module.bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CLIP))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    names = {**special, "pad_token": "<|endoftext|>", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def main(webui: str, base: str) -> None:
    sys.path.insert(0, str(Path(webui) / "repositories" / "stable-diffusion-stability-ai"))
    import torch
    from safetensors.torch import save_file

    unet = import_module("ldm.modules.diffusionmodules.openaimodel").UNetModel(**UNET)
    coder = import_module("ldm.models.autoencoder").AutoencoderKL(DECODER, {"target": "torch.nn.Identity"}, 4)
    transformers = import_module("transformers")
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP))
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    parts = {"model.diffusion_model": unet, "first_stage_model": coder, "cond_stage_model.transformer": clip}
    for prefix, part in parts.items():
        for name, value in part.state_dict().items():
            if not value.is_floating_point():
                made = value
            elif value.ndim > 1:
                made = torch.randn(value.shape, generator=generator) * 0.7 / value[0].numel() ** 0.5
            else:
                # Not all 1 and 0: the web UI divides by the mean of what the text encoder returns.
                level = float(name.endswith("weight"))
                made = level + torch.randn(value.shape, generator=generator) * 0.1
            state[f"{prefix}.{name}"] = made.contiguous()
    folder = Path(base) / "models" / "Stable-diffusion"
    folder.mkdir(parents=True, exist_ok=True)
    version = Path(base) / "run" / "openai" / "clip-vit-large-patch14"
    tokenizer(version)
    save_file(state, folder / "tiny.safetensors")
    (folder / "tiny.yaml").write_text(json.dumps(config(version)))  # JSON is YAML


if __name__ == "__main__":
    main(*sys.argv[1:])
