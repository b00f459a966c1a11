"""Stand-ins for the parts of the web UI that our code touches, as they are in 1.10.1."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context)
            else:
                h = layer(h)
        return h


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.out_channels = after
        self.layer = nn.Conv2d(before, after, 3, padding=1)
        self.emb = nn.Linear(1, after)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return torch.tanh(self.layer(h) + self.emb(emb)[..., None, None])


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h)


class Upsample(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.interpolate(h, scale_factor=2.0)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(tokens, channels)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return h + self.to_k(context).mean(1)[..., None, None]


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.attn2 = CrossAttention(channels, tokens)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        return self.attn2(h, context)


class UNetModel(nn.Module):
    """Two levels of one block each, 8 and 16 channels."""

    def __init__(self, beside: int = 0, tokens: int = 6) -> None:
        super().__init__()
        self.out_channels = 4
        block = TimestepEmbedSequential
        self.input_blocks = nn.ModuleList(
            [
                block(nn.Conv2d(4 + beside, 8, 3, padding=1)),
                block(ResBlock(8, 8), SpatialTransformer(8, tokens)),
                block(Downsample(8)),
                block(ResBlock(8, 16), SpatialTransformer(16, tokens)),
            ]
        )
        self.middle_block = block(ResBlock(16, 16))
        self.output_blocks = nn.ModuleList(
            [
                block(ResBlock(32, 16), SpatialTransformer(16, tokens)),
                block(ResBlock(24, 16), Upsample()),
                block(ResBlock(24, 8)),
                block(ResBlock(16, 8)),
            ]
        )
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        emb, skips, h = timesteps.float()[:, None] / 1000, [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)


def model(unet: nn.Module | None = None, parameterization: str = "eps") -> Any:
    """What ``shared.sd_model`` is."""
    torch.manual_seed(0)
    inner = SimpleNamespace(diffusion_model=unet if unet is not None else UNetModel())
    stage = nn.ConvTranspose2d(4, 3, 8, stride=8)
    stage.decode = stage.forward  # pyright: ignore
    return SimpleNamespace(
        model=inner,
        parameterization=parameterization,
        first_stage_model=stage,
        scale_factor=0.5,
        alphas_cumprod=torch.linspace(0.999, 0.001, 1000),
    )


def params(
    prompts: int = 1,
    images: int = 1,
    *,
    rows: int | None = None,
    step: int = 0,
    steps: int = 4,
    p: Any = None,
) -> Any:
    """What ``on_cfg_denoiser`` gets."""
    total = prompts + images if rows is None else rows
    return SimpleNamespace(
        x=torch.zeros(total, 4, 8, 8),
        sigma=torch.full((total,), 2.0),
        text_cond=torch.zeros(prompts, 5, 6),
        text_uncond=torch.zeros(images, 5, 6),
        denoiser=SimpleNamespace(step=step, total_steps=steps, p=p),
    )


def modules(monkeypatch: pytest.MonkeyPatch, base: Path, **options: Any) -> None:
    """The web UI's own modules that ours ask for paths and devices, with ``models`` in a folder.

    Args:
        monkeypatch: Takes them away again.
        base: The folder.
        options: Of its command line, as ``controlkit_dir``.
    """
    paths = SimpleNamespace(models_path=str(base / "models"), extensions_dir=str(base / "extensions"))
    made = {
        "shared": SimpleNamespace(cmd_opts=SimpleNamespace(**options)),
        "paths": paths,
        "devices": SimpleNamespace(device=torch.device("cpu"), dtype_unet=torch.float16),
    }
    monkeypatch.setitem(sys.modules, "modules", SimpleNamespace(**made))
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
