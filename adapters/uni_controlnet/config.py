"""What the two halves of a Uni-ControlNet are built from: the entries of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlkit.checkpoints.config import Keys, parse, validate
from controlkit.errors import ConfigError, ConfigMismatch

CLASS = "UniControlNet"

CONDITIONS = ("canny", "mlsd", "hed", "sketch", "openpose", "midas", "seg")
"""The maps of the published weights, three channels each, in this order."""

PIXELS_PER_LATENT = 8
"""How many times as large as the latents the maps are; the layers of the feature extractor fix it."""

_KEYS = Keys(classes=(CLASS,))


@dataclass(frozen=True)
class LocalConfig:
    """The half that reads maps: a U-Net's encoder, and a feature extractor that modulates its norms.

    Args:
        in_channels: Channels of the latents.
        block_out_channels: Width of each level.
        layers_per_block: Residual blocks of each level.
        attends: Whether each level has attention; the middle block always has.
        cross_attention_dim: Width of the prompt's tokens.
        num_attention_heads: One number, or one per level.
        transformer_layers_per_block: Layers of each attention, one number or one per level.
        use_linear_projection: See `controlkit.adapters.blocks.SpatialTransformer`.
        norm_num_groups: Groups of every group norm; 32 in the original.
        local_channels: Channels of all maps together, three for each.
        stem_channels: Widths of the feature extractor's first layers.
        inject_channels: Widths of its features, the first as large as the latents, each next one half that.
        inject_layers: Which blocks they modulate, counted as the original does: the first convolution is 0,
            and residual blocks and downsamplers follow. One in each level, from the first level on.
        conditions: Names of the maps, in order; None: those of the published weights.

    Raises:
        ConfigError: A value that cannot be built.
    """

    in_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attends: tuple[bool, ...] = (True, True, True, False)
    cross_attention_dim: int = 768
    num_attention_heads: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    local_channels: int = 21
    stem_channels: tuple[int, ...] = (32, 64, 128)
    inject_channels: tuple[int, ...] = (192, 256, 384, 512)
    inject_layers: tuple[int, ...] = (1, 4, 7, 10)
    conditions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        validate(self, zero=("transformer_layers_per_block",))
        levels = len(self.block_out_channels)
        for name in ("attends", "num_attention_heads", "transformer_layers_per_block"):
            if isinstance(value := getattr(self, name), tuple):
                self._expect(name, len(value), levels, "one per level of block_out_channels")
        self._expect("stem_channels", len(self.stem_channels), 3, "one before each halving, and the last")
        if self.local_channels % 3:
            raise ConfigError(
                "config local_channels", found=str(self.local_channels), expected="a multiple of 3: RGB maps"
            )
        if self.conditions is not None:
            self._expect("conditions", len(set(self.conditions)), self.local_channels // 3, "one per map")
        self._check_injection()
        for level, width in enumerate(self.block_out_channels):
            attends = self.attends[level] or level == levels - 1
            for name, divisor in (("norm_num_groups", self.norm_num_groups), ("heads", self.heads[level])):
                if width % divisor and (attends or name != "heads"):
                    raise ConfigError(
                        f"config {name}",
                        found=f"{divisor}, which does not divide level {level}'s width {width}",
                        expected="a divisor of every width",
                        fix="Give the number of heads, num_heads in the original.",
                    )

    def _expect(self, name: str, found: int, expected: int, meaning: str) -> None:
        if found != expected:
            raise ConfigError(f"config {name}", found=f"{found} entries", expected=f"{expected}, {meaning}")

    def _check_injection(self) -> None:
        depth = self.layers_per_block + 1
        levels = [(block - 1) // depth for block in self.inject_layers]
        is_resnet = all((block - 1) % depth < self.layers_per_block for block in self.inject_layers)
        fit = len(levels) <= min(len(self.inject_channels), len(self.block_out_channels))
        if levels != list(range(len(levels))) or not is_resnet or not fit:
            raise ConfigError(
                "config inject_layers",
                found=f"{list(self.inject_layers)} for {len(self.inject_channels)} features and "
                f"{len(self.block_out_channels)} levels of {self.layers_per_block} residual blocks",
                expected="a residual block in each level, from the first on, and a feature for each",
                fix="Features are halved level by level, and fit nowhere else.",
            )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return self._per_level(self.num_attention_heads)

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer layers of each attention, by level."""
        return self._per_level(self.transformer_layers_per_block)

    def _per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the maps, in the order in which their channels are stacked.

        A network for another number of maps than the published one, that does not name them, is taken to
        follow the same order, and what is beyond it is called ``condition 8`` and so on.
        """
        if self.conditions is not None:
            return self.conditions
        count = self.local_channels // 3
        return (*CONDITIONS[:count], *(f"condition {i + 1}" for i in range(len(CONDITIONS), count)))


@dataclass(frozen=True)
class TokensConfig:
    """The half that reads a content image: two gated feed-forward layers.

    Args:
        dim: Width of the embedding, and of each token.
        hidden: Width between the two layers.
        inner: Width inside each layer.
        count: Number of tokens.
    """

    dim: int = 768
    hidden: int = 1536
    inner: tuple[int, ...] = (3072, 6144)
    count: int = 4

    def __post_init__(self) -> None:
        validate(self)
        if len(self.inner) != 2:
            raise ConfigError("config inner", found=f"{len(self.inner)} entries", expected="2, one per layer")


def read_config(
    values: Mapping[str, Any], what: str = "config"
) -> tuple[LocalConfig | None, TokensConfig | None]:
    """The two halves from the entries of a config.json: ``local`` and ``tokens``, None where absent.

    Raises:
        ConfigError: An entry that is not known, or a value that cannot be built; or neither half.
        ConfigMismatch: It describes another class.
    """
    named = values.get("_class_name", CLASS)
    if named != CLASS:
        raise ConfigMismatch(f"{what}: _class_name", found=f"{named!r:.80}", expected=CLASS)
    halves = {key: value for key, value in values.items() if not key.startswith("_") and value is not None}
    bad = sorted(set(halves) - {"local", "tokens"})
    bad += [key for key in ("local", "tokens") if not isinstance(halves.get(key, {}), Mapping)]
    if bad or not halves:
        raise ConfigError(
            f"{what}: {bad[0]}" if bad else what,
            found=f"{values.get(bad[0])!r:.60}" if bad else "neither half",
            expected="'local' and 'tokens', or one of them, each with the entries of that half",
            fix="Use the config.json that came with the weights.",
        )
    local, tokens = halves.get("local"), halves.get("tokens")
    return (
        None if local is None else parse(LocalConfig, local, _KEYS, f"{what}: local"),
        None if tokens is None else parse(TokensConfig, tokens, _KEYS, f"{what}: tokens"),
    )
