"""Whole models in the original layout, written from diffusers' parts, as training code saves them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from controlkit.checkpoints.ldm import ldm_name

_VAE = [
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets", r"up.\1.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", r"up.\1.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]
_OPEN_CLIP = [
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm", "ln_final"),
    (r"text_model\.encoder\.layers", "transformer.resblocks"),
    (r"layer_norm1", "ln_1"),
    (r"layer_norm2", "ln_2"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"),
]


def whole(pipe: Any, family: str = "sd1") -> dict[str, Tensor]:
    """The tensors of a pipeline by their names in the original code.

    Args:
        pipe: A pipeline of `tests.tiny`.
        family: ``sd1``, ``sd2`` or ``sdxl``: which decides where the text encoders are.
    """
    layers = pipe.unet.config.layers_per_block
    attends = ["CrossAttn" in kind for kind in pipe.unet.config.up_block_types]
    found: dict[str, Tensor] = {}
    for name, tensor in pipe.unet.state_dict().items():
        original = ldm_name(name, layers=layers, up_attends=attends)
        assert original is not None, name
        found[f"model.diffusion_model.{original}"] = tensor
    levels = len(pipe.vae.config.block_out_channels)
    for name, tensor in pipe.vae.state_dict().items():
        found[f"first_stage_model.{_vae(name, levels)}"] = (
            tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor
        )
    if family == "sdxl":
        found |= _clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        found |= _open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    elif family == "sd2":
        found |= _open_clip(pipe.text_encoder, "cond_stage_model.model.")
    else:
        found |= _clip(pipe.text_encoder, "cond_stage_model.transformer.")
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def save(pipe: Any, path: Path, family: str = "sd1") -> Path:
    """Write a whole model, and beside it the folder of configs that belongs to it; the file's path."""
    import shutil

    tensors = whole(pipe, family)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)
    beside = path.with_suffix("")
    pipe.save_pretrained(beside)
    for weights in beside.rglob("*.safetensors"):
        weights.unlink()
    shutil.rmtree(beside / "safety_checker", ignore_errors=True)
    return path


def _vae(name: str, levels: int) -> str:
    for pattern, original in _VAE:
        name = re.sub(pattern, original, name)
    return re.sub(r"\bup\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)


def _clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    state = encoder.state_dict()
    return {
        f"{prefix}{name if name.startswith('text_model.') else f'text_model.{name}'}": tensor
        for name, tensor in state.items()
    }


def _open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    state = {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor
        for name, tensor in encoder.state_dict().items()
    }
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T
        elif match := re.fullmatch(r"(.*layers\.\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[f"{match[1]}.self_attn.{each}_proj.{match[2]}"] for each in "qkv"]
            block = match[1].replace("text_model.encoder.layers", "transformer.resblocks")
            found[f"{prefix}{block}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for pattern, original in _OPEN_CLIP:
                name = re.sub(pattern, original, name)
            found[prefix + name] = tensor
    return found
