"""A stand-in for Forge's U-Net: its blocks, what it adds in place, and the patches that its layers ask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.hosts.webui.stand_in import Downsample, ResBlock, Upsample

HEADS = 2


class Attention(nn.Module):
    """Cross-attention that Forge's patches reach."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(tokens, channels, bias=False)
        self.to_v = nn.Linear(tokens, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())


class Block(nn.Module):
    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.attn2 = Attention(channels, tokens)

    def forward(self, h: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        attention, key, value, rows = self.attn2, context, context, h
        told = {**options, "n_heads": HEADS}
        for patch in options.get("patches", {}).get("attn2_patch", []):
            rows, key, value = patch(rows, key, value, told)
        layers = options.get("patches_replace", {}).get("attn2", {})
        function = layers.get((*options["block"], 0), layers.get(options["block"], _plain))
        parts = attention.to_q(rows), attention.to_k(key), attention.to_v(value)
        return h.add_(attention.to_out(function(*parts, told)))  # in place, as Forge


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block(channels, tokens)])

    def forward(self, h: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        flat = h.flatten(2).transpose(1, 2).contiguous()
        for block in self.transformer_blocks:
            flat = block(flat, context, options)
        return h + flat.transpose(1, 2).reshape(h.shape)


class Sequence(nn.Sequential):
    """A block, whose parts are given what they take."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            else:
                h = layer(h, context, options) if isinstance(layer, SpatialTransformer) else layer(h)
        return h


class UNet(nn.Module):
    """Two levels of one block each, 8 and 16 channels."""

    def __init__(self, tokens: int = 6) -> None:
        super().__init__()
        self.out_channels = 4
        attends = SpatialTransformer
        self.input_blocks = nn.ModuleList(
            [
                Sequence(nn.Conv2d(4, 8, 3, padding=1)),
                Sequence(ResBlock(8, 8), attends(8, tokens)),
                Sequence(Downsample(8)),
                Sequence(ResBlock(8, 16), attends(16, tokens)),
            ]
        )
        self.middle_block = Sequence(ResBlock(16, 16), attends(16, tokens), ResBlock(16, 16))
        self.output_blocks = nn.ModuleList(
            [
                Sequence(ResBlock(32, 16), attends(16, tokens)),
                Sequence(ResBlock(24, 16), attends(16, tokens), Upsample()),
                Sequence(ResBlock(24, 8), attends(8, tokens)),
                Sequence(ResBlock(16, 8), attends(8, tokens)),
            ]
        )
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> Tensor:
        options: dict[str, Any] = {} if transformer_options is None else transformer_options
        emb, skips, h = timesteps.float()[:, None] / 1000, [], x
        for number, block in enumerate(self.input_blocks):
            options["block"] = ("input", number)
            h = _add(block(h, emb, context, options), control, "input")
            skips.append(h)
        options["block"] = ("middle", 0)
        h = _add(self.middle_block(h, emb, context, options), control, "middle")
        for number, block in enumerate(self.output_blocks):
            options["block"] = ("output", number)
            h = block(torch.cat([h, _add(skips.pop(), control, "output")], dim=1), emb, context, options)
        return self.out(h)


def _add(h: Tensor, control: Any, name: str) -> Tensor:
    part = control[name].pop() if control is not None and control[name] else None
    if part is not None:
        h += part
    return h


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    def split(t: Tensor) -> Tensor:
        return t.unflatten(2, (heads, -1)).transpose(1, 2)

    done = nn.functional.scaled_dot_product_attention(split(query), split(key), split(value))
    return done.transpose(1, 2).flatten(2)


def _plain(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    return attention(query, key, value, options["n_heads"])
