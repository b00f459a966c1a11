"""Small networks for the embedded model, with random weights."""

from __future__ import annotations

import torch

from controlkit.adapters.uni_controlnet import LocalConfig, TokensConfig, UniControlNet


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
