"""What a ControlNet-Union is built from, in the words of diffusers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from controlkit.adapters.blocks.copy_config import KEYS, EncoderCopyConfig
from controlkit.checkpoints.config import as_dict, parse
from controlkit.errors import ConfigError, Unsupported

_KEYS = replace(
    KEYS,
    # The author's own files are named after a ControlNet, or after the class of his own code.
    classes=("ControlNetUnionModel", "ControlNetModel", "ControlNetModel_Union"),
)


@dataclass(frozen=True)
class ControlNetUnionConfig(EncoderCopyConfig):
    """The implemented config keys of diffusers' ``ControlNetUnionModel``, with its defaults.

    Args:
        conditioning_embedding_out_channels: As in `EncoderCopyConfig`, with wider defaults.
        num_control_type: Types of maps: 6 (Pro) or 8 (ProMax).
        num_trans_channel: Width of the condition transformer: that of the first level.
        num_trans_head: Its heads; they act only where the rows of a batch meet (`ControlNetUnion`).
        num_trans_layer: Its layers.
        num_proj_channel: Width of the correction that it makes: that of the first level.

    The others, with the errors they raise, are those of `EncoderCopyConfig`.
    """

    conditioning_embedding_out_channels: tuple[int, ...] = (48, 96, 192, 384)
    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_head: int = 8
    num_trans_layer: int = 1
    num_proj_channel: int = 320

    def __post_init__(self) -> None:
        super().__post_init__()
        width = self.block_out_channels[0]
        needs: dict[str, tuple[object, str, bool]] = {
            "num_trans_channel": (
                self.num_trans_channel,
                f"{width}, the width of the first level",
                self.num_trans_channel == width,
            ),
            "num_proj_channel": (
                self.num_proj_channel,
                f"{width}, the width of the first level, or 1",
                self.num_proj_channel in (1, width),
            ),
            "num_trans_head": (
                self.num_trans_head,
                f"a divisor of {self.num_trans_channel}",
                self.num_trans_channel % self.num_trans_head == 0,
            ),
            "addition_time_embed_dim": (
                self.addition_time_embed_dim,
                "the width of each embedded type",
                self.addition_time_embed_dim is not None,
            ),
        }
        for name, (found, expected, fits) in needs.items():
            if not fits:
                raise ConfigError(
                    f"config {name}",
                    found=str(found),
                    expected=expected,
                    fix="Use the config.json that came with the weights.",
                )
        if self.controlnet_conditioning_channel_order != "rgb":
            raise Unsupported(
                "config controlnet_conditioning_channel_order",
                found=repr(self.controlnet_conditioning_channel_order),
                expected="'rgb'",
                fix="The original refuses it too.",
            )
        if self.mid_block_type != "UNetMidBlock2DCrossAttn":
            raise Unsupported(
                "config mid_block_type",
                found=repr(self.mid_block_type),
                expected="'UNetMidBlock2DCrossAttn'",
                fix="The original builds no other.",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "config") -> ControlNetUnionConfig:
        """Read the entries of a config.json; see `parse` for the errors."""
        return parse(cls, values, _KEYS, what)

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json that diffusers reads."""
        entries = as_dict(self, "ControlNetUnionModel")
        del entries["mid_block_type"]  # which diffusers does not vary
        return entries
