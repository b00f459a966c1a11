"""guided-diffusion's networks computed from their tensors alone, step by step, in float64: for comparison.

Written from the paper and the names of the tensors, with no layer of the package: norms, attention and
resampling are spelled out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def evaluate(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    x: Tensor,
    times: Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """Logits of a classifier, or the prediction of a U-Net.

    Args:
        state: Its tensors.
        config: Arguments of the original's constructor, all that matter.
        x: Pictures.
        times: Timesteps.
        labels: Classes of a conditional U-Net.
    """
    return _Network({name: tensor.double() for name, tensor in state.items()}, config).run(x, times, labels)


class _Network:
    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.state, self.config = state, config

    def has(self, start: str) -> bool:
        return any(name.startswith(start) for name in self.state)

    def run(self, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        half = self.config["model_channels"] // 2
        angles = [[float(t) / 10000 ** (k / half) for k in range(half)] for t in times]
        waves = [[*map(math.cos, row), *map(math.sin, row)] for row in angles]
        time = self.linear("time_embed.0", torch.tensor(waves, dtype=torch.float64))
        time = self.linear("time_embed.2", _silu(time))
        if labels is not None:
            time = time + self.state["label_emb.weight"][labels]
        depth, levels = self.config["num_res_blocks"], len(self.config["channel_mult"])
        hidden, skips = x.double(), list[Tensor]()
        for index in range(levels * (depth + 1)):
            halves = index > 0 and index % (depth + 1) == 0
            hidden = self.stage(f"input_blocks.{index}", hidden, time, "down" if halves else "")
            skips.append(hidden)
        middle = self.stage("middle_block", hidden, time, "")
        if not self.has("output_blocks."):
            return self.head(skips, middle)
        hidden = middle
        for index in range(levels * (depth + 1)):
            doubles = index % (depth + 1) == depth and index // (depth + 1) < levels - 1
            hidden = torch.cat([hidden, skips.pop()], 1)
            hidden = self.stage(f"output_blocks.{index}", hidden, time, "up" if doubles else "")
        return self.conv("out.2", _silu(self.norm("out.0", hidden)))

    def stage(self, name: str, x: Tensor, time: Tensor, resize: str) -> Tensor:
        """One stage; what resizes is its only layer going down, and its last going up."""
        count = next(i for i in range(4) if not self.has(f"{name}.{i}."))
        layers = range(max(count, 1) + (resize == "up" and not self.config["conv_resample"]))
        if self.config["resblock_updown"]:
            layers = range(count)
        for number in layers:
            part = f"{name}.{number}"
            resizes = resize if number == layers[-1] else ""
            if self.has(f"{part}.in_layers"):
                within = resizes if self.config["resblock_updown"] else ""
                x = self.residual(part, x, time, within)
                resizes = "" if self.config["resblock_updown"] else resizes
                if number < layers[-1] or not resizes:
                    continue
            elif self.has(f"{part}.qkv"):
                x = self.attend(part, x)
            elif self.has(f"{part}.op"):
                x = self.conv(f"{part}.op", x, stride=2)
            elif self.has(f"{part}.conv"):
                x = self.conv(f"{part}.conv", _resize(x, "up"))
            elif resizes:
                x = _resize(x, resizes)
            else:
                x = self.conv(part, x)
        return x

    def residual(self, name: str, x: Tensor, time: Tensor, resize: str) -> Tensor:
        hidden = self.conv(f"{name}.in_layers.2", _resize(_silu(self.norm(f"{name}.in_layers.0", x)), resize))
        added = self.linear(f"{name}.emb_layers.1", _silu(time))[:, :, None, None]
        if self.config["use_scale_shift_norm"]:
            width = hidden.shape[1]
            hidden = self.norm(f"{name}.out_layers.0", hidden)
            hidden = hidden * (1 + added[:, :width]) + added[:, width:]
        else:
            hidden = self.norm(f"{name}.out_layers.0", hidden + added)
        shortcut = _resize(x, resize)
        if self.has(f"{name}.skip_connection"):
            shortcut = self.conv(f"{name}.skip_connection", shortcut)
        return shortcut + self.conv(f"{name}.out_layers.3", _silu(hidden))

    def attend(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[1]
        pixels = self.norm(f"{name}.norm", x).flatten(2)
        qkv = self.pointwise(f"{name}.qkv", pixels)
        mixed = self.heads(qkv, width, new=self.config["use_new_attention_order"])
        return x + self.pointwise(f"{name}.proj_out", mixed).reshape(x.shape)

    def heads(self, qkv: Tensor, width: int, *, new: bool) -> Tensor:
        size = self.config["num_head_channels"]
        outputs: list[Tensor] = []
        for head in range(width // size):
            if new:
                q, k, v = (qkv[:, part * width + head * size :][:, :size] for part in range(3))
            else:
                q, k, v = qkv[:, 3 * size * head : 3 * size * (head + 1)].split(size, 1)
            share = (q.transpose(1, 2) @ k / math.sqrt(size)).softmax(-1)
            outputs.append(v @ share.transpose(1, 2))
        return torch.cat(outputs, 1)

    def head(self, skips: list[Tensor], middle: Tensor) -> Tensor:
        pool = self.config["pool"]
        if pool.startswith("spatial"):
            means = torch.cat([part.mean((2, 3)) for part in (*skips, middle)], 1)
            hidden = self.linear("out.0", means)
            if pool == "spatial":
                return self.linear("out.2", hidden.clamp_min(0))
            return self.linear("out.3", _silu(self.norm("out.1", hidden)))
        hidden = _silu(self.norm("out.0", middle))
        if pool == "adaptive":
            return self.conv("out.3", hidden.mean((2, 3), keepdim=True)).flatten(1)
        pixels = hidden.flatten(2)
        tokens = torch.cat([pixels.mean(2, keepdim=True), pixels], 2)
        tokens = tokens + self.state["out.2.positional_embedding"]
        mixed = self.heads(self.pointwise("out.2.qkv_proj", tokens), middle.shape[1], new=True)
        return self.pointwise("out.2.c_proj", mixed)[:, :, 0]

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], 32, -1)
        mean, spread = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, unbiased=False)
        shape = (1, -1, *[1] * (x.ndim - 2))
        normed = ((groups - mean) / (spread + 1e-5).sqrt()).reshape(x.shape)
        return normed * self.state[f"{name}.weight"].reshape(shape) + self.state[f"{name}.bias"].reshape(
            shape
        )

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def pointwise(self, name: str, x: Tensor) -> Tensor:
        return self.state[f"{name}.weight"][:, :, 0] @ x + self.state[f"{name}.bias"][:, None]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def _resize(x: Tensor, resize: str) -> Tensor:
    if resize == "down":
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resize == "up" else x
