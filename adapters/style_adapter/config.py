"""What a style adapter is built from: the arguments of the original's constructor, by their names there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlkit.checkpoints.config import Keys, as_dict, parse, validate
from controlkit.errors import ConfigError

_BASES = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


@dataclass(frozen=True)
class StyleAdapterConfig:
    """The arguments of the original's ``StyleAdapter``; the defaults are those of the published file.

    Args:
        width: Of the image encoder's tokens, and of the network.
        context_dim: Of the prompt's tokens.
        num_head: Attention heads; divides ``width``.
        n_layes: Transformer layers; the original spells it so.
        num_token: Tokens that are put after the prompt's.
    """

    width: int = 1024
    context_dim: int = 768
    num_head: int = 8
    n_layes: int = 3
    num_token: int = 8

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
        """The base model, told by the width of its tokens."""
        return _BASES.get(self.context_dim, "other")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "config") -> StyleAdapterConfig:
        """Read the entries of a config.json; see `parse` for the errors."""
        return parse(cls, values, Keys(classes=("StyleAdapter",), unused=frozenset(("class",))), what)

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json."""
        return as_dict(self, "StyleAdapter")
