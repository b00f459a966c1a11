"""A tiny Uni-ControlNet for the tiny U-Net of the same family, with random weights, none of them zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from controlkit.adapters.uni_controlnet import LocalConfig, TokensConfig, UniControlNet
from tests import tiny

WIDTH = 768
LOCAL = LocalConfig(
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=1,
    cross_attention_dim=WIDTH,
    num_attention_heads=2,
    norm_num_groups=8,
    stem_channels=(8, 8, 12),
    inject_channels=(8, 12, 16, 20),
    inject_layers=(1, 3, 5, 7),
)
TOKENS = TokensConfig(dim=WIDTH, hidden=48, inner=(24, 40), count=4)


def uni(
    seed: int = 0, local: LocalConfig | None = LOCAL, tokens: TokensConfig | None = TOKENS
) -> UniControlNet:
    module = tiny.randomize(UniControlNet(local, tokens), seed + 7)
    assert isinstance(module, UniControlNet)
    return module


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int, rows: int = 1, pixels: int = 64) -> Tensor:
    return torch.rand(rows, 3, pixels, pixels, generator=torch.Generator().manual_seed(seed))


def stacked(module: UniControlNet, maps: dict[str, Tensor]) -> Tensor:
    """All maps on their channels, zeros for the absent ones, written out."""
    channels = torch.zeros(1, module.local.config.local_channels, *next(iter(maps.values())).shape[-2:])
    order = ["canny", "mlsd", "hed", "sketch", "openpose", "midas", "seg"]
    for name, value in maps.items():
        channels[:, 3 * order.index(name) : 3 * order.index(name) + 3] = value
    return channels


def inputs(rows: int = 2, seed: int = 0) -> dict[str, Any]:
    """Arguments of `LocalAdapter.forward`."""
    return {
        "latents": noise(rows, 4, 8, 8, seed=seed),
        "timesteps": torch.linspace(10, 900, rows).long(),
        "tokens": noise(rows, 9, WIDTH, seed=seed + 1),
        "maps": torch.rand(rows, 21, 64, 64, generator=torch.Generator().manual_seed(seed)),
    }
