"""What does a picture show? A small network that reads kind, colour and depth from a picture of the world.

It stands in for a person who looks: trained on rendered pictures with exact labels, it never sees a
generated picture in training. `adherence.py` compares what it sees with what was asked for.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from controlkit.embedded.world import COLOURS, KINDS

SIDE = 64
"""Height and width of what the judge answers."""


class Logits(NamedTuple):
    """Raw answers: kind (n, 5, 64, 64), colour (n, 9, 64, 64), depth (n, 64, 64); index 0 is the floor."""

    kind: Tensor
    colour: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Reading:
    """What the judge sees in n pictures.

    Attributes:
        kinds: (n, 64, 64) uint8; 0 the floor, else 1 + the index into `KINDS`.
        colours: (n, 64, 64) uint8; 0 the floor, else 1 + the index into `COLOURS`.
        depth: (n, 64, 64) float32, inverse depth in about [0, 1], near is large.
    """

    kinds: np.ndarray
    colours: np.ndarray
    depth: np.ndarray


class _Block(nn.Module):
    """Two convolutions with a skip, at one resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class JudgeNet(nn.Module):
    """A U-shaped network from (n, 3, 128, 128) in [0, 1] to answers at 64x64."""

    def __init__(self, widths: tuple[int, int, int, int] = (24, 40, 64, 80)):
        super().__init__()
        first, *_, last = widths
        self.enter = nn.Conv2d(3, first, 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.before = nn.ModuleList(_Block(width) for width in widths[:-1])
        self.middle = nn.Sequential(_Block(last), _Block(last))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.after = nn.ModuleList(_Block(width) for width in widths[:-1])
        self.leave = nn.Conv2d(first, len(KINDS) + len(COLOURS) + 3, 1)

    def forward(self, images: Tensor) -> Logits:
        x = self.enter(images * 2.0 - 1.0)
        skips = []
        for block, down in zip(self.before, self.down, strict=True):
            x = block(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for block, up, skip in zip(reversed(self.after), reversed(self.up), reversed(skips), strict=True):
            x = block(F.interpolate(up(x), scale_factor=2.0, mode="nearest") + skip)
        kind, colour, depth = self.leave(x).split([len(KINDS) + 1, len(COLOURS) + 1, 1], dim=1)
        return Logits(kind, colour, depth[:, 0])


class Judge:
    """Reads pictures with a trained `JudgeNet`."""

    def __init__(self, net: JudgeNet):
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def read(self, images: list[Image.Image]) -> Reading:
        """Say what 128x128 RGB pictures show, 64 at a time."""
        readings = []
        for begin in range(0, len(images), 64):
            pixels = np.stack([np.asarray(image.convert("RGB")) for image in images[begin : begin + 64]])
            seen = self.net(torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous() / 255.0)
            readings.append((seen.kind.argmax(1), seen.colour.argmax(1), seen.depth))
        kinds, colours, depth = (torch.cat(parts) for parts in zip(*readings, strict=True))
        return Reading(kinds.numpy().astype(np.uint8), colours.numpy().astype(np.uint8), depth.numpy())


def load_judge(folder: Path | None = None) -> Judge:
    """Load the judge that ships with the package, in float32, or one from a folder of the same layout."""
    from safetensors.torch import load_file

    from controlkit import embedded

    net = JudgeNet()
    weights = load_file((folder or embedded.path("judge")) / "model.safetensors")
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return Judge(net)
