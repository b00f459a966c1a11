"""How are the networks that guide the embedded model read from their folders?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from controlkit.guidance.towers import NoisySegmenter, NoisyTowers

M = TypeVar("M", bound=nn.Module)


class TextTower(nn.Module):
    """A small CLIP text encoder and a projection: token numbers (n, 26) to (n, dim), from the end's state."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(128, dim, bias=False)

    @classmethod
    def new(cls, dim: int) -> TextTower:
        """Random weights, in the shape of the base model's text encoder. Needs transformers."""
        from transformers import CLIPTextConfig, CLIPTextModel

        from controlkit.embedded import path

        config = CLIPTextConfig.from_pretrained(path("base") / "text_encoder")
        return cls(CLIPTextModel(config), dim)

    def begin_with(self, folder: Path) -> None:
        """Take the weights of an exported text encoder."""
        from controlkit.embedded.texts import text_encoder

        self.encoder.load_state_dict(text_encoder(folder).state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.projection(self.encoder(tokens).pooler_output)


def load_clip(folder: Path) -> NoisyTowers:
    """Read the two towers, in float32, without gradients."""
    from transformers import CLIPTokenizer

    from controlkit.adapters.noisy_classifier import ClassifierConfig, NoisyClassifier
    from controlkit.embedded import path
    from controlkit.guidance.towers import NoisyTowers

    image = NoisyClassifier(ClassifierConfig.from_dict(_config(folder)))
    text = TextTower.new(image.classes)
    tokenizer = CLIPTokenizer.from_pretrained(path("base") / "tokenizer")

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids

    return _filled(NoisyTowers(image, text, tokenize), folder)


def load_segmentation(folder: Path) -> NoisySegmenter:
    """Read the segmenter, in float32, without gradients."""
    from controlkit.adapters.noisy_classifier import PixelUNet, PixelUNetConfig
    from controlkit.guidance.towers import NoisySegmenter

    return _filled(NoisySegmenter(PixelUNet(PixelUNetConfig.from_dict(_config(folder)))), folder)


class PictureDepth(nn.Module):
    """What the judge reads of depth, from pixels in [-1, 1]."""

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (batch, 3, H, W), sides multiples of 16, to inverse depth (batch, H/2, W/2)."""
        return self.judge((x + 1) / 2).depth


def load_depth(folder: Path) -> PictureDepth:
    """Read the judge's network, in float32, without gradients."""
    from controlkit.evaluation.judge import load_judge

    return PictureDepth(load_judge(folder).net).eval().requires_grad_(False)


def _config(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def _filled(module: M, folder: Path) -> M:
    from safetensors.torch import load_file

    from controlkit.embedded.texts import renamed

    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    module.load_state_dict(renamed(weights, module.state_dict()))
    return module.eval().requires_grad_(False)
