"""What a CoAdapter fuser is built from: the arguments of the original's constructor, by their names there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlkit.checkpoints.config import Keys, as_dict, parse, validate
from controlkit.errors import ConfigError

_SD1 = ((320, 640, 1280, 1280), 768)


@dataclass(frozen=True)
class CoAdapterFuserConfig:
    """The arguments of the original's ``CoAdapterFuser``; the defaults are those of the published file.

    Args:
        unet_channels: Of each level of the U-Net's encoder.
        width: Of the network, and of the prompt's tokens.
        num_head: Attention heads; divides ``width``.
        n_layes: Transformer layers; the original spells it so.
    """

    unet_channels: tuple[int, ...] = _SD1[0]
    width: int = _SD1[1]
    num_head: int = 8
    n_layes: int = 3

    def __post_init__(self) -> None:
        validate(self)
        if self.width % self.num_head:
            raise ConfigError(
                "config num_head",
                found=f"{self.num_head} heads for a width of {self.width}",
                expected="a number that divides it",
            )

    @property
    def base(self) -> str:
        """``sd1`` for the published sizes, else ``other``."""
        return "sd1" if (self.unet_channels, self.width) == _SD1 else "other"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "config") -> CoAdapterFuserConfig:
        """Read the entries of a config.json; see `parse` for the errors."""
        return parse(cls, values, Keys(classes=("CoAdapterFuser",), unused=frozenset(("class",))), what)

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json."""
        return as_dict(self, "CoAdapterFuser")
