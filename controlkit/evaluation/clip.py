"""Does a picture fit a caption? A small CLIP that only measures: it never guided, and reads clean pictures.

Trained on rendered pictures alone, with other networks than the towers that guide
(`controlkit.embedded.clip`) and from a seed of its own, so that what is measured is not what was optimised.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from controlkit.embedded.vocabulary import LENGTH, WORDS, encode

WIDTH = 96
"""Of the common space."""


class _Block(nn.Module):
    """Two convolutions with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class JudgeClipNet(nn.Module):
    """Pictures (n, 3, 64, 64) in [0, 1] and token numbers (n, 26) to (n, 96), both of length 1."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96)) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(3, first, 4, stride=2, padding=1)]
        for before, after in itertools.pairwise(widths):
            layers += [_Block(before), nn.Conv2d(before, after, 3, stride=2, padding=1)]
        layers += [_Block(last), nn.GroupNorm(8, last), nn.SiLU(), nn.Conv2d(last, 32, 1)]
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8 * 8, WIDTH))
        self.words = nn.Embedding(2 + len(WORDS), 48)
        self.reader = nn.GRU(48, 96, batch_first=True, bidirectional=True)
        self.text = nn.Linear(2 * 96, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def encode_image(self, x: Tensor) -> Tensor:
        return F.normalize(self.image(x * 2.0 - 1.0), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        assert tokens.shape[1] == LENGTH
        states, _ = self.reader(self.words(tokens))
        return F.normalize(self.text(states.mean(1)), dim=-1)


class JudgeClip:
    """Compares pictures and captions with a trained `JudgeClipNet`."""

    def __init__(self, net: JudgeClipNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """128x128 RGB pictures to (n, 96) of length 1."""
        found = []
        for begin in range(0, len(images), 64):
            pixels = np.stack([np.asarray(image.convert("RGB")) for image in images[begin : begin + 64]])
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
            found.append(self.net.encode_image(F.avg_pool2d(x, 2)))
        return torch.cat(found)

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Captions of the world to (n, 96) of length 1.

        Raises:
            KeyError: A word that is not the world's.
        """
        return self.net.encode_text(torch.tensor(encode(list(captions))))

    def retrieval(self, images: Sequence[Image.Image], captions: Sequence[str]) -> float:
        """Share of the pictures whose own caption is the nearest of all given; chance is 1 / len(captions).

        Args:
            images: One per caption, in order.
            captions: All different.

        Raises:
            ValueError: If the numbers differ or two captions are the same.
        """
        if len(images) != len(captions) or len(set(captions)) != len(captions):
            raise ValueError(
                f"{len(images)} pictures, {len(captions)} captions of which {len(set(captions))} differ;"
                " give one of its own per picture"
            )
        nearest = (self.pictures(images) @ self.captions(captions).mT).argmax(1)
        return float((nearest == torch.arange(len(captions))).float().mean())


def load_judge_clip(folder: Path | None = None) -> JudgeClip:
    """Load the one that ships with the package, in float32, or one from a folder of the same layout."""
    from safetensors.torch import load_file

    from controlkit import embedded

    net = JudgeClipNet()
    weights = load_file((folder or embedded.path("judge-clip")) / "model.safetensors")
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return JudgeClip(net)
