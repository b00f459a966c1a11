"""Tiny ControlNet-Unions, and diffusers' network with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from controlkit.adapters.controlnet_union import ControlNetUnion, ControlNetUnionConfig
from tests import tiny


def union(family: tiny.Family = "sdxl", seed: int = 0, **changes: Any) -> ControlNetUnion:
    """A tiny one for the tiny U-Net of this family, with random weights, none of them zero."""
    shared = asdict(tiny.controlnet_config(family))
    own = {"num_trans_channel": 16, "num_proj_channel": 16, "num_trans_head": 2, "num_control_type": 8}
    entries = {**shared, "addition_time_embed_dim": 8, **own, **changes}
    module = tiny.randomize(ControlNetUnion(ControlNetUnionConfig(**entries)), seed + 7)
    assert isinstance(module, ControlNetUnion)
    for name, parameter in module.controlnet_cond_embedding.named_parameters():
        if name.endswith("weight"):
            parameter.mul_(2.0)  # or its features would hardly depend on the map
    return module


def reference(module: ControlNetUnion) -> Any:
    """diffusers' network with the same config and weights."""
    entries = {key: value for key, value in module.config_entries().items() if not key.startswith("_")}
    model = import_module("diffusers").ControlNetUnionModel(**entries).eval().requires_grad_(False)
    model.load_state_dict(module.state_dict())
    return model


def theirs(
    model: Any,
    inputs: Mapping[str, Any],
    maps: Mapping[int, Tensor],
    scales: list[float] | float = 1.0,
    guess_mode: bool = False,
) -> list[Tensor]:
    """What diffusers' network answers for maps by the number of their type, the middle last."""
    rows = inputs["latents"].shape[0]
    flags = torch.zeros(rows, model.config.num_control_type)
    flags[:, list(maps)] = 1.0
    skips, mid = model(
        inputs["latents"],
        inputs["timesteps"],
        inputs["tokens"],
        list(maps.values()),
        flags,
        list(maps),
        conditioning_scale=scales,
        added_cond_kwargs=inputs["added"],
        guess_mode=guess_mode,
        return_dict=False,
    )
    return [*skips, mid]
