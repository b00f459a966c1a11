"""What a ControlNet is built from, in the words of diffusers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from controlkit.adapters.blocks.copy_config import KEYS, EncoderCopyConfig
from controlkit.checkpoints.config import as_dict, parse


@dataclass(frozen=True)
class ControlNetConfig(EncoderCopyConfig):
    """The implemented config keys of diffusers' ``ControlNetModel``, with its defaults.

    All of them, with their meaning and the errors they raise, are those of `EncoderCopyConfig`.
    """

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "config") -> ControlNetConfig:
        """Read the entries of a config.json; see `parse` for the errors."""
        return parse(cls, values, replace(KEYS, classes=("ControlNetModel",)), what)

    @classmethod
    def from_unet_dict(cls, values: Mapping[str, Any]) -> ControlNetConfig:
        """Read a U-Net's config.json: what its encoder needs, and refuse what is not implemented."""
        return parse(cls, values, replace(KEYS, classes=("UNet2DConditionModel",)), "unet config")

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json that diffusers reads."""
        return as_dict(self, "ControlNetModel")
