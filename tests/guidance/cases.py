"""Every ready-made function with small networks and a target, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import controlkit as ck
from controlkit.adapters.noisy_classifier import ClassifierConfig, NoisyClassifier
from controlkit.adapters.noisy_clip import NoisyClip
from controlkit.adapters.noisy_clip.config import NoisyClipConfig
from tests import tiny

SIDE = 32
"""Of the pictures and latents that the cases are evaluated on."""
PALETTE = ((226, 44, 40), (44, 96, 236), (248, 216, 36))


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    """Three flat shapes with soft borders on a flat ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (4 * side, 4 * side), tuple(rng.integers(150, 250, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = (int(value) for value in rng.integers(side // 2, 2 * side, 2))
        draw.ellipse((left, top, left + side, top + side), fill=tuple(rng.integers(0, 120, 3).tolist()))
    return image.resize((side, side), Image.Resampling.BILINEAR)


def pixels(image: Image.Image) -> Tensor:
    """(1, 3, H, W) float64 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double() / 127.5 - 1


def left_half(side: int = SIDE) -> Image.Image:
    mask = Image.new("L", (side, side))
    mask.paste(255, (0, 0, side // 2, side))
    return mask


def labels(side: int = SIDE) -> np.ndarray:
    found = np.zeros((side, side), np.int64)
    found[side // 4 : side // 2, side // 4 :] = 1
    found[side // 2 :, : side // 2] = 2
    return found


def edge_map(image: Image.Image) -> Image.Image:
    return ck.embedded.canny_map(image)


class Net(nn.Module):
    """A smooth network of pictures and times: maps of ``outputs`` channels, or their mean."""

    def __init__(self, channels: int, outputs: int, *, pool: bool, seed: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.last = nn.Conv2d(8, outputs, 3, stride=2, padding=1)
        self.pool = pool
        tiny.randomize(self, seed)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x) + (t / 1000).to(x)[:, None, None, None])
        found = self.last(hidden)
        return found.mean((2, 3)) if self.pool else found


class Clean(Net):
    """The same without times."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, torch.zeros(len(x)))


class Pair(nn.Module):
    """A noise-aware pair with feature maps; texts are read by their letters."""

    def __init__(self, channels: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.image = Net(channels, 12, pool=True, seed=seed)
        self.letters = nn.Parameter(torch.randn(128, 12, generator=torch.Generator().manual_seed(seed)))
        self.requires_grad_(False)

    def encode_image(self, x: Tensor, t: Tensor) -> Tensor:
        return self.image(x, t)

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.stack([self.letters[[ord(letter) % 128 for letter in text]].mean(0) for text in texts])

    def features(self, x: Tensor, t: Tensor) -> list[Tensor]:
        hidden = torch.tanh(self.image.first(x))
        return [hidden, torch.tanh(self.image.last(hidden))]


def noisy_clip(seed: int = 60) -> NoisyClip:
    config = NoisyClipConfig(
        width=8, layers=(1, 1, 1, 1), embed_dim=16, image_size=32, time_channels=10, time_dim=12
    )
    net = tiny.randomize(NoisyClip(config), seed)
    assert isinstance(net, NoisyClip)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.Conv2d):  # or depth makes features too faint to be differentiated
                part.weight.mul_(6)
    return net


def clip_model(seed: int = 0) -> Any:
    """A tiny ``CLIPModel`` that reads 24x24 pixels, and the tiny tokenizer's words."""
    library = import_module("transformers")
    words = tiny.tokenizer()
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": tiny.TOKENS, **layers}
    text |= {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id, "pad_token_id": 1}
    config = library.CLIPConfig(
        text_config=text, vision_config={"image_size": 24, "patch_size": 8, **layers}, projection_dim=12
    )
    return tiny.randomize(library.CLIPModel(config).eval(), seed)


def classifier(channels: int = 4) -> NoisyClassifier:
    config = ClassifierConfig(
        image_size=SIDE,
        in_channels=channels,
        model_channels=32,
        out_channels=5,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        pool="adaptive",
    )
    net = tiny.randomize(NoisyClassifier(config), 51)
    assert isinstance(net, NoisyClassifier)
    return net


def depth_of(x: Tensor) -> Tensor:
    """A depth network without weights: what is dark is near; smoothed."""
    return torch.nn.functional.avg_pool2d(-x.mean(1, keepdim=True), 3, stride=1, padding=1)[:, 0] * 3 + 7


def depth_map(image: Image.Image) -> np.ndarray:
    found = depth_of(pixels(image))[0].numpy()
    return (found - found.min()) / (found.max() - found.min())


@dataclass(frozen=True)
class Case:
    """A function and what it is asked for.

    Args:
        make: The function, with networks in the dtype that it is given.
        y: The target.
        channels: Of what it sees.
        best: What fits the target best of all, (1, channels, SIDE, SIDE), where that is known.
    """

    make: Callable[[torch.dtype], Any]
    y: Any
    channels: int
    best: Callable[[], Tensor] | None = None


_TRUE = picture(1)
g = ck.guidance


def _flat() -> Tensor:
    colours = torch.tensor(PALETTE, dtype=torch.float64)[torch.from_numpy(labels())] / 127.5 - 1
    return colours.permute(2, 0, 1)[None]


def _red() -> Tensor:
    return torch.tensor([1.0, -1, -1], dtype=torch.float64)[None, :, None, None].expand(1, 3, SIDE, SIDE)


CASES: dict[str, Case] = {
    "classifier": Case(lambda d: g.classifier(classifier().to(d)), 3, 4),
    "classifier net(x, t)": Case(lambda d: g.classifier(Net(4, 6, pool=True).to(d)), 5, 4),
    "classifier of pixels": Case(lambda d: g.classifier(Clean(3, 6, pool=True).to(d), sees="image"), 2, 3),
    "text, pair": Case(lambda d: g.text(Pair().to(d)), "a red cube", 4),
    "text, NoisyClip": Case(
        lambda d: g.text(noisy_clip().to(d)),
        torch.randn(16, generator=torch.Generator().manual_seed(3)),
        3,
    ),
    "text, CLIPModel": Case(lambda d: g.text(clip_model().to(d), processor=tiny.tokenizer()), "a cube", 3),
    "image, pair": Case(lambda d: g.image(Pair(3).to(d)), _TRUE, 3, lambda: pixels(_TRUE)),
    "image, pair, content": Case(
        lambda d: g.image(Pair(3).to(d), match="content"), _TRUE, 3, lambda: pixels(_TRUE)
    ),
    "image, NoisyClip, style": Case(
        lambda d: g.image(noisy_clip().to(d), match="style"), _TRUE, 3, lambda: pixels(_TRUE)
    ),
    "image, CLIPModel": Case(lambda d: g.image(clip_model().to(d)), _TRUE, 3, lambda: pixels(_TRUE)),
    "image, CLIPModel, content": Case(
        lambda d: g.image(clip_model().to(d), match="content"), _TRUE, 3, lambda: pixels(_TRUE)
    ),
    "image, CLIPModel, style": Case(
        lambda d: g.image(clip_model().to(d), match="style"), _TRUE, 3, lambda: pixels(_TRUE)
    ),
    "segmentation": Case(lambda d: g.segmentation(Net(4, 3, pool=False).to(d)), labels(), 4),
    "segmentation of pixels": Case(
        lambda d: g.segmentation(Clean(3, 3, pool=False).to(d), sees="image"), labels(), 3
    ),
    "segmentation by colour": Case(lambda d: g.segmentation(palette=PALETTE), labels(), 3, _flat),
    "edges": Case(lambda d: g.edges(), edge_map(_TRUE), 3, lambda: pixels(_TRUE)),
    "depth": Case(lambda d: g.depth(depth_of), depth_map(_TRUE), 3, lambda: pixels(_TRUE)),
    "depth, other size": Case(lambda d: g.depth(depth_of, size=(20, 24)), depth_map(_TRUE), 3),
    "color": Case(lambda d: g.color(), "red", 3, _red),
    "color of a region": Case(lambda d: g.color(mask=left_half()), (255, 0, 0), 3, _red),
    "color, palette": Case(lambda d: g.color(match="palette"), ["red", "#0000ff"], 3),
    "color, layout": Case(lambda d: g.color(size=4), _TRUE, 3, lambda: pixels(_TRUE)),
    "region": Case(lambda d: g.region(left_half()), _TRUE, 3, lambda: pixels(_TRUE)),
    "total": Case(
        lambda d: g.total((g.edges(), edge_map(_TRUE)), (g.region(left_half()), _TRUE, 0.5)),
        None,
        3,
        lambda: pixels(_TRUE),
    ),
}


def drawn(channels: int, seed: int, images: int = 1) -> Tensor:
    """Smooth random pictures, float64, about in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(images, channels, 8, 8, generator=generator, dtype=torch.float64)
    fine = torch.randn(images, channels, SIDE, SIDE, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(rough, (SIDE, SIDE), mode="bicubic")
    return 0.5 * smooth + 0.1 * fine
