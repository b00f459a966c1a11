"""What a noisy CLIP image encoder is built from. Shapes tell all of it.

Source:
    The sizes that xh-liu/SDG_code@62fb2725 `sdg/clip_guidance.py` (`CLIP_gd`) takes from CLIP's RN50x16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlkit.checkpoints.config import Keys, as_dict, parse, validate
from controlkit.errors import ConfigError

_CLASS, _ORIGINAL = "NoisyClip", "CLIP_gd"
HEAD = 64
"""Channels of a head of the attention pool, as in every CLIP."""


@dataclass(frozen=True)
class NoisyClipConfig:
    """Sizes of the modified ResNet and of what the timestep adds to it; RN50x16 at 256 pixels by default.

    Args:
        width: Channels after the stem; the pool reads 32 times as many.
        layers: Blocks of each of the four stages.
        embed_dim: Width of the embedding, which is that of the text encoder's.
        image_size: Side of the pictures, a multiple of 32.
        time_channels: Width of the timestep's sinusoids.
        time_dim: Width of its embedding.
    """

    width: int = 96
    layers: tuple[int, ...] = (6, 8, 18, 8)
    embed_dim: int = 768
    image_size: int = 256
    time_channels: int = 128
    time_dim: int = 512

    def __post_init__(self) -> None:
        validate(self)
        if len(self.layers) != 4 or self.width % 2 or self.image_size % 32:
            raise ConfigError(
                "config layers, width, image_size",
                found=f"{list(self.layers)}, {self.width}, {self.image_size}",
                expected="four stages, an even width, a multiple of 32 pixels",
                fix="Use the config.json that came with the weights.",
            )

    @property
    def features(self) -> int:
        """Channels of the last feature map."""
        return 32 * self.width

    @property
    def modulated(self) -> tuple[int, ...]:
        """Channels of every norm that the timestep scales and shifts, in the order of the computation."""
        stem = (self.width // 2, self.width // 2, self.width)
        stages = (
            (wide, wide, 4 * wide) * blocks
            for wide, blocks in zip((self.width << stage for stage in range(4)), self.layers, strict=True)
        )
        return (*stem, *(channels for stage in stages for channels in stage))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "config") -> NoisyClipConfig:
        """Read the entries of a config.json, or the options of ``CLIP_gd``; see `parse` for the errors."""
        return parse(
            cls, values, Keys((_CLASS, _ORIGINAL), unused=frozenset(("finetune_clip_layer", "clip"))), what
        )

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json."""
        entries = as_dict(self, _CLASS)
        del entries["_diffusers_version"]
        return entries
