"""Small networks for the embedded model, with random weights that are nowhere zero."""

from __future__ import annotations

import torch

from controlkit.adapters.coadapter import CoAdapterFuser, CoAdapterFuserConfig
from controlkit.adapters.ip_adapter import IPAdapter, IPAdapterConfig
from controlkit.adapters.style_adapter import StyleAdapter, StyleAdapterConfig
from controlkit.adapters.uni_controlnet import LocalConfig, TokensConfig, UniControlNet
from tests import tiny

VISION = 32
"""Width of the image encoder's tokens in these tests."""


def image_prompt(plus: bool, widths: tuple[int, ...] = (96, 144, 144, 144, 144)) -> IPAdapter:
    """An IP-Adapter, or the kind that reads the encoder's tokens; for layers of these widths."""
    settings: dict[str, int] = {"dim": 24, "depth": 1, "dim_head": 8, "heads": 3, "ff_width": 48}
    config = IPAdapterConfig(
        projection="resampler" if plus else "linear",
        cross_attention_dim=128,
        embedding_dim=VISION,
        num_tokens=3,
        **(settings if plus else {}),
    )
    made = tiny.randomize(IPAdapter(config, widths), 5)
    assert isinstance(made, IPAdapter)
    return made


def style() -> StyleAdapter:
    """A style adapter."""
    config = StyleAdapterConfig(width=VISION, context_dim=128, num_head=2, n_layes=1, num_token=3)
    made = tiny.randomize(StyleAdapter(config), 6)
    assert isinstance(made, StyleAdapter)
    return made


def fuser() -> CoAdapterFuser:
    """A fuser of T2I-Adapters and a style adapter."""
    config = CoAdapterFuserConfig(unet_channels=(96, 144), width=128, num_head=4, n_layes=1)
    made = tiny.randomize(CoAdapterFuser(config), 7)
    assert isinstance(made, CoAdapterFuser)
    return made


def uni() -> UniControlNet:
    """A Uni-ControlNet of both halves; its zero convolutions have weights."""
    torch.manual_seed(0)
    local = LocalConfig(
        block_out_channels=(96, 144),
        layers_per_block=1,
        attends=(True, True),
        cross_attention_dim=128,
        num_attention_heads=(3, 4),
        norm_num_groups=16,
        stem_channels=(8, 8, 8),
        inject_channels=(8, 12),
        inject_layers=(1, 3),
    )
    made = UniControlNet(local, TokensConfig(dim=128, hidden=32, inner=(16, 24), count=4)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return made
