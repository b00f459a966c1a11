"""Tiny random models of every family, for tests: same layouts as the published ones, narrow, no downloads.

Token widths are the real ones (768, 1024, 2048), so that the family is recognised as in life. Every zero
convolution gets random weights: with zeros a control would do nothing and a test could not fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from controlkit.adapters.controlnet import ControlNet, ControlNetConfig
from controlkit.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig

Family = Literal["sd1", "sd2", "sdxl"]

TOKENS = 40
"""Length of a tokenised prompt."""
POOLED = 1280
"""Width of SDXL's pooled text."""

_COMMON: dict[str, Any] = {"norm_num_groups": 8, "layers_per_block": 1, "in_channels": 4}
_LEVELS: dict[Family, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (16, 32, 32, 32),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "cross_attention_dim": 768,
        "attention_head_dim": 2,
    },
    "sd2": {
        "block_out_channels": (16, 32, 32, 32),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "cross_attention_dim": 1024,
        "attention_head_dim": (1, 2, 4, 4),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (1, 2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": POOLED + 6 * 8,
    },
}


def _diffusers() -> Any:
    return import_module("diffusers")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch drawn inside depend on ``seed`` alone, and nothing outside changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomize(module: nn.Module, seed: int, zero_scale: float = 0.3) -> nn.Module:
    """Redraw every parameter, so that no convolution is zero and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name and parameter.ndim == 1
            if parameter.ndim > 1:
                scale = zero_scale if _is_zero_conv(name) else 1.0
                fan_in = parameter[0].numel()
                parameter.copy_(noise * scale / fan_in**0.5)
            elif is_norm and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.1 * noise)
    return module.eval().requires_grad_(False)


def _is_zero_conv(name: str) -> bool:
    return (
        "controlnet_down_blocks" in name
        or "controlnet_mid_block" in name
        or "cond_embedding.conv_out" in name
    )


def controlnet_config(family: Family = "sd1", **changes: Any) -> ControlNetConfig:
    """The config of a tiny ControlNet for the tiny U-Net of the same family."""
    config = ControlNetConfig(
        **_COMMON, **_LEVELS[family], conditioning_embedding_out_channels=(8, 8, 16, 16)
    )
    return replace(config, **changes)


def controlnet(family: Family = "sd1", seed: int = 0, **changes: Any) -> ControlNet:
    """A tiny ControlNet with random weights, none of them zero."""
    module = randomize(ControlNet(controlnet_config(family, **changes)), seed + 1)
    assert isinstance(module, ControlNet)
    return module


def t2i_config(family: Family = "sd1", **changes: Any) -> T2IAdapterConfig:
    """The config of a tiny T2I-Adapter for the tiny U-Net of the same family."""
    if family == "sdxl":
        # Its U-Net has three levels; an XL adapter has one feature more, as in life.
        config = T2IAdapterConfig(
            channels=(16, 32, 32, 32), num_res_blocks=1, downscale_factor=16, adapter_type="full_adapter_xl"
        )
    else:
        config = T2IAdapterConfig(channels=(16, 32, 32, 32), num_res_blocks=1)
    return replace(config, **changes)


def t2i_adapter(family: Family = "sd1", seed: int = 0, **changes: Any) -> T2IAdapter:
    """A tiny T2I-Adapter with random weights."""
    module = randomize(T2IAdapter(t2i_config(family, **changes)), seed + 2)
    assert isinstance(module, T2IAdapter)
    return module


def unet(family: Family = "sd1", seed: int = 0, **changes: Any) -> Any:
    """A tiny ``UNet2DConditionModel`` with random weights."""
    levels = {**_COMMON, **_LEVELS[family]}
    ups = tuple(name.replace("Down", "Up") for name in reversed(levels["down_block_types"]))
    settings = {"sample_size": 8, "out_channels": 4, "up_block_types": ups, **levels, **changes}
    return randomize(_diffusers().UNet2DConditionModel(**settings), seed + 3)


def vae(seed: int = 0) -> Any:
    """A tiny ``AutoencoderKL`` that shrinks eight times."""
    blocks = 4
    model = _diffusers().AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )
    return randomize(model, seed + 4)


def text_encoder(width: int, seed: int = 0, *, projection: bool = False) -> Any:
    """A tiny CLIP text model whose tokens are ``width`` wide."""
    words = tokenizer()
    library = import_module("transformers")
    config = library.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = (library.CLIPTextModelWithProjection if projection else library.CLIPTextModel)(config)
    return randomize(model, seed + 5)


def tokenizer() -> Any:
    """A CLIP tokenizer that spells every word in letters; made in memory."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-"
    entries = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return import_module("transformers").CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def scheduler(family: Family = "sd1", **changes: Any) -> Any:
    """DDIM with Stable Diffusion's noise schedule."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "v_prediction" if family == "sd2" else "epsilon",
    }
    return _diffusers().DDIMScheduler(**{**settings, **changes})


def components(family: Family = "sd1", seed: int = 0) -> dict[str, Any]:
    """Everything a diffusers pipeline of this family is made of, by argument name."""
    parts = {
        "unet": unet(family, seed),
        "vae": vae(seed),
        "tokenizer": tokenizer(),
        "scheduler": scheduler(family),
    }
    if family == "sdxl":
        return parts | {
            "tokenizer_2": tokenizer(),
            "text_encoder": text_encoder(768, seed),
            "text_encoder_2": text_encoder(1280, seed + 1, projection=True),
        }
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return parts | extra | {"text_encoder": text_encoder(768 if family == "sd1" else 1024, seed)}


def pipeline(family: Family = "sd1", seed: int = 0, cls: type | None = None, **parts: Any) -> Any:
    """A tiny diffusers pipeline with random weights.

    Args:
        family: Its base model.
        seed: Of every weight.
        cls: Another pipeline class of this family, such as an image-to-image one.
        parts: Components that replace the tiny ones, such as ``scheduler``.
    """
    name = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    pipe = (cls or getattr(_diffusers(), name))(**{**components(family, seed), **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(
    family: Family = "sd1", rows: int = 2, size: tuple[int, int] = (8, 8), seed: int = 0
) -> Mapping[str, Any]:
    """Arguments of `ControlNet.forward` for this family: latents, timesteps, tokens, map and ``added``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    height, width = size
    added = None
    if family == "sdxl":
        ids = torch.tensor([[8.0 * height, 8.0 * width, 0, 0, 8.0 * height, 8.0 * width]])
        added = {"text_embeds": draw(rows, POOLED), "time_ids": ids.repeat(rows, 1)}
    return {
        "latents": draw(rows, 4, height, width),
        "timesteps": torch.linspace(10, 900, rows).long(),
        "tokens": draw(rows, TOKENS, _LEVELS[family]["cross_attention_dim"]),
        "control_map": torch.rand(rows, 3, 8 * height, 8 * width, generator=generator),
        "added": added,
    }
