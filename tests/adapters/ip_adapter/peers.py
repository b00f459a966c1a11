"""Random IP-Adapters in the published layout, and pipelines that have them through diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

import controlkit as ck
from tests import tiny

Kind = Literal["plain", "plus", "full"]
KINDS: tuple[Kind, ...] = ("plain", "plus", "full")
HIDDEN, PROJECTED, PIXELS = 24, 16, 32
"""The tiny image encoder's inner width, the width of its projected vector, and its pictures' side."""


def state(unet: Any, kind: Kind, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Random weights of an IP-Adapter for a U-Net, under the names of the published safetensors files."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + 0.2 * draw(width) * width**0.5, f"{name}.bias": 0.3 * draw(width)}

    dim = unet.config.cross_attention_dim
    pooled, hidden = sizes.get("pooled", PROJECTED), sizes.get("hidden", HIDDEN)
    weights: dict[str, Tensor] = {}
    if kind == "plain":
        weights = {"proj.weight": draw(4 * dim, pooled), "proj.bias": 0.5 * draw(4 * dim) * dim**0.5}
        weights |= norm("norm", dim)
    elif kind == "full":
        weights = {"proj.0.weight": draw(hidden, hidden), "proj.0.bias": draw(hidden)}
        weights |= {"proj.2.weight": draw(dim, hidden), "proj.2.bias": draw(dim)} | norm("proj.3", dim)
    else:
        width, inner, depth = sizes.get("width", 40), sizes.get("inner", 128), sizes.get("depth", 4)
        weights["latents"] = draw(1, sizes.get("queries", 6), width) * width**0.5
        weights |= {"proj_in.weight": draw(width, hidden), "proj_in.bias": draw(width)}
        weights |= {"proj_out.weight": draw(dim, width), "proj_out.bias": draw(dim)} | norm("norm_out", dim)
        for i in range(depth):
            at = f"layers.{i}"
            weights |= norm(f"{at}.0.norm1", width) | norm(f"{at}.0.norm2", width) | norm(f"{at}.1.0", width)
            weights |= {
                f"{at}.0.to_q.weight": draw(inner, width),
                f"{at}.0.to_kv.weight": draw(2 * inner, width),
                f"{at}.0.to_out.weight": draw(width, inner),
                f"{at}.1.1.weight": draw(sizes.get("ff", 4) * width, width),
                f"{at}.1.3.weight": draw(width, sizes.get("ff", 4) * width),
            }
    weights = {f"image_proj.{name}": tensor for name, tensor in weights.items()}
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for index, name in enumerate(layers):
        inner = unet.get_submodule(name.removesuffix(".processor")).inner_dim
        for key in ("k", "v"):
            weights[f"ip_adapter.{2 * index + 1}.to_{key}_ip.weight"] = 2 * draw(inner, dim)
    return weights


def nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As in the published ``.bin`` files."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return parts


def load(unet: Any, kind: Kind, seed: int = 0, **sizes: int) -> ck.IPAdapter:
    """The same as a module of ours."""
    module = ck.load(state(unet, kind, seed, **sizes))
    assert isinstance(module, ck.IPAdapter)
    return module


def encoder(hidden: int = HIDDEN, projected: int = PROJECTED) -> Any:
    """A tiny CLIP vision model of random weights."""
    config = transformers.CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=8,
        projection_dim=projected,
    )
    return tiny.randomize(transformers.CLIPVisionModelWithProjection(config), 7)


def photo(seed: int, size: tuple[int, int] = (PIXELS, PIXELS)) -> Image.Image:
    """A random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def with_adapters(pipe: Any, states: Iterable[Mapping[str, Tensor]], scales: Iterable[Any]) -> Any:
    """Load IP-Adapters into a pipeline the way its users do."""
    parts = [nested(flat) for flat in states]
    pipe.load_ip_adapter(
        parts, subfolder=[""] * len(parts), weight_name=[""] * len(parts), image_encoder_folder=None
    )
    pipe.set_ip_adapter_scale(list(scales))
    return pipe


def pipeline(family: tiny.Family = "sd1", **parts: Any) -> Any:
    """A tiny pipeline with an image encoder."""
    parts = {"image_encoder": encoder(), **parts}
    if parts["image_encoder"] is not None:
        size = {"height": PIXELS, "width": PIXELS}
        # Pillow's resizing, as the models were trained with; beside torchvision the plain name is another's.
        pillow: Any = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        parts["feature_extractor"] = pillow(size={"shortest_edge": PIXELS}, crop_size=size)
    return tiny.pipeline(family, **parts)


def call(pipe: Any, **arguments: Any) -> Tensor:
    """A picture in latents."""
    settings: dict[str, Any] = {
        "prompt": "a red cube",
        "guidance_scale": 5.0,
        "num_inference_steps": 3,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    }
    if "height" in inspect.signature(type(pipe).__call__).parameters:
        settings |= {"height": 64, "width": 64}
    return pipe(**{**settings, **arguments}).images
