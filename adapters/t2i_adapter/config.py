"""What a T2I-Adapter is built from: diffusers' config keys, and four for what diffusers cannot build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from controlkit.checkpoints.config import Keys, as_dict, parse, validate
from controlkit.errors import ConfigError

BASES = {(320, 640, 1280, 1280): "sd1", (320, 640, 1280): "sd1", (96, 144): "embedded"}
"""Base models by the widths of their encoders' levels."""
_CLASS, _OWN_CLASS = "T2IAdapter", "OriginalT2IAdapter"
_OWN_TYPE = "original_"
_OURS = ("pooling", "ksize", "sk", "use_conv", "last_channels")


@dataclass(frozen=True)
class T2IAdapterConfig:
    """The config keys of diffusers' ``T2IAdapter``, with its defaults, and what the original has beside.

    Args:
        in_channels: Channels of the control map: 1 for line maps of the first models, else 3.
        channels: Of each feature map. ``light_adapter`` repeats the last.
        num_res_blocks: Residual blocks per level.
        downscale_factor: Side of the pixel blocks that are folded into channels: 8, or 16 for SDXL.
        adapter_type: ``full_adapter``, ``light_adapter`` or ``full_adapter_xl``.
        pooling: How an odd size is halved where that is done by averaging: ``ceil`` rounds up, as diffusers
            does; ``floor`` drops the last row, as the original does. Even sizes are the same. During a run
            sizes are always rounded up, as the U-Net's are, where the original stops with an error.
        ksize: Side of all kernels but the first of each block, odd; 1 in diffusers and all published files.
        sk: Plain shortcuts. False: a convolution before each block, and one on each shortcut.
        use_conv: Halve by a convolution and not by averaging.
        last_channels: Of a light adapter's last feature, where it is not the one before repeated.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: Literal["full_adapter", "light_adapter", "full_adapter_xl"] = "full_adapter"
    pooling: Literal["ceil", "floor"] = "ceil"
    ksize: int = 1
    sk: bool = True
    use_conv: bool = False
    last_channels: int | None = None

    def __post_init__(self) -> None:
        validate(self)
        light = self.adapter_type == "light_adapter"
        narrow = light and min(self.feature_channels) < 4
        uneven = self.adapter_type == "full_adapter_xl" and len(set(self.channels[2:])) > 1
        if narrow or uneven:
            raise ConfigError(
                "config channels",
                found=str(list(self.channels)),
                expected="at least 4 each" if narrow else "the same from the third on, as SDXL's encoder has",
                fix="Use the config.json that came with the weights.",
            )
        if self.ksize % 2 == 0:
            raise ConfigError("config ksize", found=str(self.ksize), expected="an odd number, such as 1 or 3")
        plain = (self.ksize, self.sk, self.use_conv) == (1, True, False)
        if (light and not plain) or (not light and self.last_channels is not None):
            found = {name: getattr(self, name) for name in _OURS[1:]}
            raise ConfigError(
                "config ksize, sk, use_conv, last_channels",
                found=f"{found} for a {self.adapter_type}",
                expected="the last for light adapters, the others for full ones",
            )

    @property
    def base(self) -> str:
        """The base model this fits: SD 1 and SD 2 have the same encoder, so both are ``sd1``."""
        if self.adapter_type == "full_adapter_xl":
            return "sdxl" if self.channels == (320, 640, 1280, 1280) else "other"
        light = self.adapter_type == "light_adapter"
        return BASES.get(self.feature_channels if light else self.channels, "other")

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each feature, one per level."""
        if self.adapter_type != "light_adapter":
            return self.channels
        return (*self.channels, self.last_channels or self.channels[-1])

    @property
    def is_diffusers(self) -> bool:
        """Whether diffusers' class can hold it; how it halves odd sizes is not counted."""
        return self.sk and not self.use_conv and self.ksize == 1 and self.last_channels is None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "config") -> T2IAdapterConfig:
        """Read the entries of a config.json; see `parse` for the errors."""
        kind = values.get("adapter_type")
        if isinstance(kind, str) and kind.startswith(_OWN_TYPE):
            values = {**values, "adapter_type": kind.removeprefix(_OWN_TYPE)}
        return parse(cls, values, Keys(classes=(_CLASS, _OWN_CLASS)), what)

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json: what diffusers reads where it has the network.

        Where it has not, class and type are names that diffusers does not know, so that it refuses them
        and does not load a network with some weights left random.
        """
        entries = as_dict(self, _CLASS if self.is_diffusers else _OWN_CLASS)
        if not self.is_diffusers:
            entries["adapter_type"] = _OWN_TYPE + self.adapter_type
        usual = {item.name: item.default for item in fields(self) if item.name in _OURS}
        return {key: value for key, value in entries.items() if key not in usual or value != usual[key]}
