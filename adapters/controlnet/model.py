"""The ControlNet network: tensors in, residuals for a U-Net out. No pipeline, no diffusers.

What it does during a run (scale, window, mode, sharing the hint) is in `control.py`.

Source:
    Zhang et al. (2023), arXiv:2302.05543, section 3; operations and parameter names of diffusers 0.42
    `models/controlnets/controlnet.py`, to the bit in float32 on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks import (
    DownBlock,
    MidBlock,
    ResnetBlock,
    SpatialTransformer,
    TimeMlp,
    sinusoids,
)
from controlkit.adapters.blocks.encoder import Downsample
from controlkit.adapters.controlnet.config import ATTENDING, ControlNetConfig
from controlkit.contracts import Residuals
from controlkit.errors import BatchMismatch, HintError, ParameterError
from controlkit.module import MapModule

if TYPE_CHECKING:
    from controlkit.binding import BoundMap
    from controlkit.contracts import Control
    from controlkit.strength import Strength


class HintEncoder(nn.Module):
    """Control map (batch, channels, H, W) to features (batch, width, h, w) as large as the latents.

    Args:
        channels: Of the map.
        widths: Of the convolutions; each after the first halves the size.
        width: Of the features, which are zero before training.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, padding=1, stride=2))
        self.conv_out = _zero_conv(widths[-1], width, 3)

    def forward(self, control_map: Tensor) -> Tensor:
        features = F.silu(self.conv_in(control_map))
        for block in self.blocks:
            features = F.silu(block(features))
        return self.conv_out(features)


class ControlNet(MapModule):
    """A copy of the U-Net's encoder that reads a control map and answers with residuals.

    Made for the base model named by `base`. One forward costs a little more than half of one of the
    U-Net's. It reads the prompt's tokens and adds to every skip connection and after the middle block.

    Args:
        config: What to build. New weights leave the U-Net as it is: the zero convolutions are zero.

    Attributes:
        config: The same, frozen.
    """

    kind: ClassVar[str] = "controlnet"

    def __init__(self, config: ControlNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ControlNetConfig()
        widths = config.block_out_channels
        time_dim = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeMlp(widths[0], time_dim)
        if config.addition_embed_type:
            self.add_embedding = TimeMlp(config.projection_class_embeddings_input_dim or 0, time_dim)
        self.controlnet_cond_embedding = HintEncoder(
            config.conditioning_channels, config.conditioning_embedding_out_channels, widths[0]
        )
        self.down_blocks = nn.ModuleList(_down_block(config, level, time_dim) for level in range(len(widths)))
        self.mid_block = _mid_block(config, time_dim)
        self.controlnet_down_blocks = nn.ModuleList(
            _zero_conv(channels, channels) for channels in skip_channels(widths, config.layers_per_block)
        )
        self.controlnet_mid_block = _zero_conv(widths[-1], widths[-1])

    @property
    def base(self) -> str:
        """``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``, told by the width of the tokens."""
        return self.config.base

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor | float,
        tokens: Tensor,
        control_map: Tensor | None = None,
        *,
        added: Mapping[str, Tensor] | None = None,
        hint: Tensor | None = None,
    ) -> Residuals:
        """Residuals at scale 1.

        Args:
            latents: (batch, in_channels, h, w), as the U-Net gets them, in the weights' dtype.
            timesteps: () or (batch,), in [0, 1000), high is noisy; may be fractional.
            tokens: (batch, n, cross_attention_dim), the prompt's.
            control_map: (batch or 1, conditioning_channels, 8h, 8w), RGB in [0, 1].
            added: SDXL's ``text_embeds`` (batch, pooled) and ``time_ids`` (batch, 6), as in diffusers'
                ``added_cond_kwargs``.
            hint: What `encode_hint` made of the map, (batch or 1, width, h, w); then no map is needed.

        Returns:
            ``skips`` in the U-Net's order and ``mid``; 1x1 each where the config pools them globally.

        Raises:
            ParameterError: Neither a map nor a hint, or both; SDXL's conditions are missing.
            HintError: The map does not fit the latents.
            BatchMismatch: Another number of rows than the latents have.
        """
        time = self._embed_time(latents, timesteps, added)
        sample = self.conv_in(latents)
        sample = sample + self._hint(sample, control_map, hint)
        skips = [sample]
        for block in self.down_blocks:
            skips.extend(block(skips[-1], time, tokens))
        mid = self.controlnet_mid_block(self.mid_block(skips[-1], time, tokens))
        outputs = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        if self.config.global_pool_conditions:
            mid = mid.mean(dim=(2, 3), keepdim=True)
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        return Residuals(skips=tuple(outputs), mid=mid)

    def encode_hint(self, control_map: Tensor) -> Tensor:
        """Encode a map once for many steps.

        Args:
            control_map: (batch, conditioning_channels, H, W), RGB in [0, 1].

        Returns:
            (batch, width, h, w), for the ``hint`` argument.

        Raises:
            HintError: It has another number of channels.
        """
        channels = self.config.conditioning_channels
        if control_map.ndim != 4 or control_map.shape[1] != channels:
            raise HintError(
                "control_map",
                found=f"shape {tuple(control_map.shape)}",
                expected=f"(batch, {channels}, height, width)",
                fix="Give RGB in [0, 1]; repeat a gray map's channel, drop an alpha channel.",
            )
        if self.config.controlnet_conditioning_channel_order == "bgr":
            control_map = control_map.flip(1)
        return self.controlnet_cond_embedding(control_map)

    def _hint(self, sample: Tensor, control_map: Tensor | None, hint: Tensor | None) -> Tensor:
        if (control_map is None) == (hint is None):
            raise ParameterError(
                "control_map and hint",
                found="neither" if hint is None else "both",
                expected="one of them",
                fix="Give a map, or what encode_hint made of it.",
            )
        features = hint if control_map is None else self.encode_hint(control_map.to(sample.dtype))
        assert features is not None
        if features.shape[1:] != sample.shape[1:]:
            size = tuple(sample.shape[-2:])
            factor = 2 ** (len(self.config.conditioning_embedding_out_channels) - 1)
            raise HintError(
                "control_map" if hint is None else "hint",
                found=f"{tuple(features.shape[1:])} once encoded",
                expected=f"{tuple(sample.shape[1:])}, as latents are {size[0]}x{size[1]}",
                fix=f"The map must be {factor} times as large as the latents: "
                f"{factor * size[0]}x{factor * size[1]}.",
            )
        _check_rows("control_map" if hint is None else "hint", features, sample.shape[0], one=True)
        return features

    def _embed_time(
        self, latents: Tensor, timesteps: Tensor | float, added: Mapping[str, Tensor] | None
    ) -> Tensor:
        """(batch, 4 * width): time, and with SDXL sizes and pooled text, after the SiLU all blocks share."""
        config, rows = self.config, latents.shape[0]
        steps = torch.as_tensor(timesteps, device=latents.device).reshape(-1)
        _check_rows("timesteps", steps, rows, one=True)
        angles = sinusoids(
            steps.expand(rows),
            config.block_out_channels[0],
            cosine_first=config.flip_sin_to_cos,
            shift=config.freq_shift,
        )
        time = self.time_embedding(angles.to(latents.dtype))
        if config.addition_embed_type:
            missing = [key for key in ("text_embeds", "time_ids") if key not in (added or {})]
            if missing or added is None:
                raise ParameterError(
                    "added",
                    found=f"no {' and no '.join(missing)}",
                    expected="text_embeds and time_ids, as in diffusers' added_cond_kwargs",
                    fix="SDXL networks need the pooled text (rows, 1280) and the size ids (rows, 6).",
                )
            pooled, ids = added["text_embeds"], added["time_ids"]
            _check_rows("added text_embeds", pooled, rows)
            _check_rows("added time_ids", ids, rows)
            sizes = sinusoids(
                ids.flatten(),
                config.addition_time_embed_dim or 0,
                cosine_first=config.flip_sin_to_cos,
                shift=config.freq_shift,
            )
            parts = torch.cat([pooled, sizes.reshape(rows, -1)], dim=-1)
            time = time + self.add_embedding(parts.to(time.dtype))
        return F.silu(time)

    @property
    def map_channels(self) -> int:
        return self.config.conditioning_channels

    def bind(self, bound: BoundMap, strength: Strength) -> Control:
        from controlkit.adapters.controlnet.control import ControlNetControl

        return ControlNetControl(self, bound, strength)

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    @classmethod
    def from_unet(
        cls,
        unet: nn.Module | Mapping[str, Tensor],
        config: Mapping[str, Any] | ControlNetConfig | None = None,
        *,
        hint_channels: tuple[int, ...] = (16, 32, 96, 256),
        conditioning_channels: int = 3,
    ) -> ControlNet:
        """A ControlNet to train: the encoder copied from a U-Net, the zero convolutions at zero.

        Args:
            unet: A U-Net with diffusers' parameter names, or its state dict.
            config: The U-Net's config; by default the module's own, or told by the shapes for published
                families.
            hint_channels: Widths of the hint encoder.
            conditioning_channels: Channels of the control map.

        Returns:
            In training mode, all parameters trainable, on the CPU or where the U-Net's weights are.

        Raises:
            Incomplete: Keys of the encoder are missing.
            ShapeMismatch: A weight has another shape than the config says.
        """
        from controlkit.adapters.controlnet.checkpoint import copy_encoder

        return copy_encoder(cls, unet, config, hint_channels, conditioning_channels)


def skip_channels(widths: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Channels of each skip connection of a U-Net, in its order: conv_in, then blocks and downsampler."""
    channels = [widths[0]]
    for level, width in enumerate(widths):
        channels += [width] * (layers + (level < len(widths) - 1))
    return tuple(channels)


def _zero_conv(inputs: int, outputs: int, size: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _transformer(config: ControlNetConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        config.block_out_channels[level],
        config.heads[level],
        config.cross_attention_dim,
        depth=config.depths[level],
        groups=config.norm_num_groups,
        linear=config.use_linear_projection,
    )


def _down_block(config: ControlNetConfig, level: int, time_dim: int) -> DownBlock:
    widths, layers = config.block_out_channels, config.layers_per_block
    width = widths[level]
    inputs = [widths[max(0, level - 1)]] + [width] * (layers - 1)
    resnets = [
        ResnetBlock(before, width, time_dim, groups=config.norm_num_groups, eps=config.norm_eps)
        for before in inputs
    ]
    attends = config.down_block_types[level] == ATTENDING
    attentions = [_transformer(config, level) for _ in range(layers)] if attends else None
    last = level == len(widths) - 1
    return DownBlock(resnets, attentions, None if last else Downsample(width, config.downsample_padding))


def _mid_block(config: ControlNetConfig, time_dim: int) -> MidBlock:
    width = config.block_out_channels[-1]

    def resnet() -> ResnetBlock:
        return ResnetBlock(
            width,
            width,
            time_dim,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            divisor=config.mid_block_scale_factor,
        )

    attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
    return MidBlock(resnet, _transformer(config, len(config.block_out_channels) - 1) if attends else None)


def _check_rows(what: str, value: Tensor, rows: int, *, one: bool = False) -> None:
    if value.shape[0] != rows and not (one and value.shape[0] == 1):
        raise BatchMismatch(
            what,
            found=f"{value.shape[0]} rows",
            expected=f"{rows}, as many as latents" + (", or 1" if one else ""),
            fix="Repeat it for both halves of classifier-free guidance.",
        )
