"""What an IP-Adapter's network is: the entries of its config.json, which shapes tell but for the heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from controlkit.checkpoints.config import Keys, as_dict, parse, validate
from controlkit.errors import ConfigError

_KEYS = Keys(
    classes=("IPAdapter",),
    neutral={"apply_pos_emb": (False,), "num_latents_mean_pooled": (0,)},
    unused=frozenset(("max_seq_len",)),
)
_ORIGINAL = {
    "clip_embeddings_dim": "embedding_dim",
    "clip_extra_context_tokens": "num_tokens",
    "num_queries": "num_tokens",
    "output_dim": "cross_attention_dim",
}
"""Arguments of the original's classes (``ImageProjModel``, ``MLPProjModel``, ``Resampler``)."""


@dataclass(frozen=True)
class IPAdapterConfig:
    """The projection of a picture's embedding to tokens.

    The cross-attention's widths are not here: they are those of the U-Net, and the weights tell them.

    Args:
        projection: ``linear``: one vector to a few tokens (IP-Adapter). ``mlp``: each of the encoder's tokens
            by itself (full face). ``resampler``: learned queries that attend to the encoder's tokens (plus).
        cross_attention_dim: Width of the tokens that are made.
        embedding_dim: Width of the embedding that is read.
        num_tokens: Tokens for each picture; ``mlp`` makes as many as it is given, and this is not used.
        dim: Width inside the resampler.
        depth: Its layers.
        dim_head: Width of each of its heads.
        heads: Their number.
        ff_width: Width inside its feed-forward networks.
    """

    projection: Literal["linear", "mlp", "resampler"] = "linear"
    cross_attention_dim: int = 768
    embedding_dim: int = 1024
    num_tokens: int = 4
    dim: int = 768
    depth: int = 4
    dim_head: int = 64
    heads: int = 12
    ff_width: int = 3072

    def __post_init__(self) -> None:
        validate(self)

    @property
    def base(self) -> str:
        """The base model whose tokens are this wide: ``sd1``, ``sd2``, ``sdxl`` or ``other``."""
        return {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(self.cross_attention_dim, "other")

    @property
    def reads(self) -> Literal["pooled", "penultimate"]:
        """What of the image encoder's answer it reads: a vector, or the tokens of the last layer but one."""
        return "pooled" if self.projection == "linear" else "penultimate"

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json."""
        return as_dict(self, "IPAdapter")

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any], what: str = "config") -> IPAdapterConfig:
        """Read the entries of a config.json.

        Raises:
            ConfigError: One that is not known, or a value that cannot be built.
        """
        return parse(cls, entries, _KEYS, what)


def translated(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Entries with the names of the original's constructors replaced by those of `IPAdapterConfig`.

    Raises:
        ConfigError: The same thing is given under two names, with two values.
    """
    entries: dict[str, Any] = {}
    for key, value in config.items():
        name = _ORIGINAL.get(key, key)
        if key == "ff_mult":  # of the width, which shapes tell
            continue
        if name in entries and entries[name] != value:
            raise ConfigError(
                f"{what}: {key}",
                found=f"{value!r:.40}, and {entries[name]!r:.40} under another name",
                expected="one value",
                fix="Give it once.",
                code="CK-L30",
            )
        entries[name] = value
    return entries
