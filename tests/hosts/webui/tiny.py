"""Run inside the web UI's environment: write tiny checkpoints of the kinds that it knows.

    python tiny.py WEBUI_FOLDER BASE_FOLDER [NAME ...]

By default ``tiny`` alone, of Stable Diffusion 1's kind: 3 M parameters with random weights, with a config
beside it (as the web UI takes it), and a tokenizer whose words are those of open-clip's own table, so that
nothing is fetched. The others are in `KINDS`.
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


KINDS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "tiny-v": {},
    "tiny-inpaint": {"in_channels": 9},
    "tiny-shaped": {
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "num_heads": 8,
    },
    "tiny-xl": {
        "attention_resolutions": [4, 2],
        "channel_mult": [1, 2, 4],
        "context_dim": 64,
        "num_classes": "sequential",
        "adm_in_channels": 24 + 6 * 256,
        "use_linear_in_transformer": True,
    },
}
"""What each one's U-Net has otherwise: one that predicts v, one that is given a mask and a picture, one with
as many blocks as Stable Diffusion 1, and one of SDXL's kind, with two text encoders and sizes."""
ARCHITECTURE = Path(__file__).parent / "probe" / "controlkit-tiny-text.json"
"""SDXL's second text encoder, as open-clip describes it; the probe tells open-clip of it."""


def config(version: Path, name: str = "tiny") -> dict[str, Any]:
    """A model's config, in the original project's form."""
    if name == "tiny-xl":
        return config_xl(version)
    ldm, inpaints = "ldm.modules", name == "tiny-inpaint"
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
        "conditioning_key": "hybrid" if inpaints else "crossattn",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {"target": f"{ldm}.diffusionmodules.openaimodel.UNetModel", "params": unet_of(name)},
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
    if name == "tiny-v":
        params["parameterization"] = "v"
    if inpaints:
        params["finetune_keys"] = None
    kind = "LatentInpaintDiffusion" if inpaints else "LatentDiffusion"
    return {"model": {"target": f"ldm.models.diffusion.ddpm.{kind}", "params": params}}


def config_xl(version: Path) -> dict[str, Any]:
    """The same for SDXL's kind."""
    sgm = "sgm.modules"
    denoiser = f"{sgm}.diffusionmodules"
    unet = {**unet_of("tiny-xl"), "transformer_depth": [1, 1, 1], "spatial_transformer_attn_type": "softmax"}
    del unet["image_size"]
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    texts = [
        (
            f"{sgm}.encoders.modules.FrozenCLIPEmbedder",
            {"version": str(version), "layer": "hidden", "layer_idx": 1},
        ),
        (
            f"{sgm}.encoders.modules.FrozenOpenCLIPEmbedder2",
            {
                "arch": ARCHITECTURE.stem,
                "version": "none",
                "layer": "penultimate",
                "always_return_pooled": True,
                "legacy": False,
            },
        ),
    ]
    sized = (f"{sgm}.encoders.modules.ConcatTimestepEmbedderND", {"outdim": 256})
    read = [*(("txt", text) for text in texts), *((size, sized) for size in sizes)]
    params = {
        "scale_factor": 0.13025,
        "disable_first_stage_autocast": True,
        "denoiser_config": {
            "target": f"{denoiser}.denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                "weighting_config": {"target": f"{denoiser}.denoiser_weighting.EpsWeighting"},
                "scaling_config": {"target": f"{denoiser}.denoiser_scaling.EpsScaling"},
                "discretization_config": {"target": f"{denoiser}.discretizer.LegacyDDPMDiscretization"},
            },
        },
        "network_config": {"target": f"{denoiser}.openaimodel.UNetModel", "params": unet},
        "conditioner_config": {
            "target": f"{sgm}.GeneralConditioner",
            "params": {
                "emb_models": [
                    {"is_trainable": False, "input_key": key, "target": target, "params": given}
                    for key, (target, given) in read
                ]
            },
        },
        "first_stage_config": {
            "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            "params": {
                "embed_dim": 4,
                "monitor": "val/rec_loss",
                "ddconfig": DECODER,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
    }
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}}


def unet_of(name: str) -> dict[str, Any]:
    """What a checkpoint's U-Net is made with."""
    return {**UNET, **KINDS[name]}


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


def parts_of(name: str) -> dict[str, Any]:
    """The networks of a checkpoint, by the beginning of their tensors' names."""
    transformers = import_module("transformers")
    unet = import_module("ldm.modules.diffusionmodules.openaimodel").UNetModel(**unet_of(name))
    coder = import_module("ldm.models.autoencoder").AutoencoderKL(DECODER, {"target": "torch.nn.Identity"}, 4)
    parts = {"model.diffusion_model": unet, "first_stage_model": coder}
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP))
    if name != "tiny-xl":
        return {**parts, "cond_stage_model.transformer": clip}
    library = import_module("open_clip")
    library.add_model_config(ARCHITECTURE)
    second = library.create_model(ARCHITECTURE.stem)
    del second.visual
    return {**parts, "conditioner.embedders.0.transformer": clip, "conditioner.embedders.1.model": second}


def checkpoint(base: Path, name: str) -> None:
    """Write one, with its config."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for prefix, part in parts_of(name).items():
        for key, value in part.state_dict().items():
            if not value.is_floating_point():
                made = value
            elif value.ndim > 1:
                made = torch.randn(value.shape, generator=generator) * 0.7 / value[0].numel() ** 0.5
            else:
                # Not all 1 and 0: the web UI divides by the mean of what the text encoder returns.
                level = float(key.endswith("weight"))
                made = level + torch.randn(value.shape, generator=generator) * 0.1
            state[f"{prefix}.{key}"] = made.contiguous()
    folder = base / "models" / "Stable-diffusion"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / f"{name}.safetensors")
    version = base / "run" / "openai" / "clip-vit-large-patch14"
    (folder / f"{name}.yaml").write_text(json.dumps(config(version, name)))  # JSON is YAML


def main(webui: str, base: str, *names: str) -> None:
    sys.path.insert(0, str(Path(webui) / "repositories" / "stable-diffusion-stability-ai"))
    tokenizer(Path(base) / "run" / "openai" / "clip-vit-large-patch14")
    for name in names or ("tiny",):
        checkpoint(Path(base), name)


if __name__ == "__main__":
    main(*sys.argv[1:])
