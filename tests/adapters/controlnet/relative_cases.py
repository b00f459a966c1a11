"""Files of Control-LoRAs and differences, and the complete ControlNets that they stand for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.controlnet import ControlNet
from controlkit.checkpoints.ldm import ldm_name
from tests import tiny

PREFIX = "control_model."
HEADS: dict[str, dict[str, Any]] = {
    "sd1": {"num_heads": 2},
    "sdxl": {"num_head_channels": 16, "addition_time_embed_dim": 8},
}
"""What the shapes of the tiny networks do not tell."""
KINDS = ("control-lora", "controlnet-difference")

# The original has norms of 32 groups, so that the tiny networks must be wide enough for them.
WIDTHS: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": (32, 64, 64, 64), "norm_num_groups": 32},
    "sdxl": {
        "block_out_channels": (32, 64, 64),
        "norm_num_groups": 32,
        "attention_head_dim": (2, 4, 4),
    },
}


def unet(family: tiny.Family = "sd1", seed: int = 0) -> Any:
    return copy.deepcopy(_unet(family, seed))


@cache
def _unet(family: tiny.Family, seed: int) -> Any:
    return tiny.unet(family, seed, **WIDTHS[family])


@cache
def _components(family: tiny.Family) -> Any:
    return tiny.components(family)


def pipeline(family: tiny.Family = "sd1", **parts: Any) -> Any:
    return tiny.pipeline(family, **{**_components(family), "unet": unet(family), **parts})


@cache
def complete(family: tiny.Family = "sd1") -> ControlNet:
    return tiny.controlnet(family, seed=50, **WIDTHS[family])


def base_weights(base: Any) -> dict[str, Tensor]:
    """A U-Net's weights by the names of the original code, as far as its encoder has them."""
    layers = base.config.layers_per_block
    attends = ["CrossAttn" in kind for kind in base.config.up_block_types]
    named = {ldm_name(k, layers=layers, up_attends=attends): v for k, v in base.state_dict().items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


def difference_file(net: ControlNet, base: Any, prefix: str = PREFIX) -> dict[str, Tensor]:
    """As `extract_controlnet_diff.py` of sd-webui-controlnet writes it."""
    theirs = base_weights(base)
    file = {"difference": torch.tensor(1.0)}
    for name, tensor in net.original_state().items():
        bare = name.removeprefix(PREFIX)
        file[prefix + bare] = tensor - theirs[bare] if bare in theirs else tensor
    return file


def lora_file(net: ControlNet, base: Any, rank: int = 3, flat: bool = False) -> dict[str, Tensor]:
    """As the node ``ControlLoraSave`` writes it, with random factors in place of those of an SVD."""
    theirs = base_weights(base)
    generator = torch.Generator().manual_seed(9)
    file = {"lora_controlnet": torch.tensor([])}
    for name, tensor in net.original_state().items():
        bare = name.removeprefix(PREFIX)
        if bare not in theirs or tensor.ndim < 2:
            file[bare] = tensor
            continue
        inputs, fan_in = tensor.shape[1:], tensor[0].numel()
        up = torch.randn(tensor.shape[0], rank, generator=generator) * 0.3
        down = torch.randn(rank, fan_in, generator=generator) / fan_in**0.5
        stem = bare.removesuffix(".weight")
        file[f"{stem}.up"] = up if tensor.ndim == 2 or flat else up[:, :, None, None]
        file[f"{stem}.down"] = down if flat else down.reshape(rank, *inputs)
    return file


def by_hand(file: Mapping[str, Tensor], net: ControlNet, base: Any) -> ControlNet:
    """The formula: W = W_base + up @ down, or W = W_base + difference."""
    theirs = base_weights(base)
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in file.items()}
    state: dict[str, Tensor] = {}
    for name in net.original_state():
        key = name.removeprefix(PREFIX)
        stem = key.removesuffix(".weight")
        if f"{stem}.up" in bare and key.endswith(".weight"):
            delta = bare[f"{stem}.up"].flatten(1) @ bare[f"{stem}.down"].flatten(1)
            state[name] = theirs[key] + delta.reshape(theirs[key].shape)
        elif "difference" in bare and key in theirs:
            state[name] = theirs[key] + bare[key]
        else:
            state[name] = bare[key]
    family = "sdxl" if net.base == "sdxl" else "sd1"
    found = ck.load(state, kind="controlnet", config=HEADS[family])
    assert isinstance(found, ControlNet)
    return found


def made(kind: str, family: tiny.Family = "sd1") -> tuple[dict[str, Tensor], ControlNet, Any]:
    """A file, the complete ControlNet that it stands for, and its base."""
    net, base = complete(family), unet(family)
    file = (lora_file if kind == "control-lora" else difference_file)(net, base)
    return file, by_hand(file, net, base), base


def load(file: Mapping[str, Tensor], family: tiny.Family = "sd1") -> Any:
    return ck.load(file, config=HEADS[family])


def call(pipe: Any, **changes: Any) -> Tensor:
    settings = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent"}
    generator = torch.Generator().manual_seed(3)
    found: Tensor = pipe("a house", **settings, generator=generator, **changes).images
    return found


IMAGE = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1)) * 255).byte().numpy()
