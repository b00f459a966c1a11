"""The local half of Uni-ControlNet: stacked maps in, residuals for a U-Net out. No pipeline, no diffusers.

It has a ControlNet's structure, but the maps are not added after the first convolution: features of them
replace scale and shift of the norms of one residual block in each level ("feature denormalisation").

Source:
    Zhao et al. (2023), arXiv:2305.16322, section 3.2 and equation 2; operations as in
    ShihaoZhaoZSH/Uni-ControlNet@4da003c3 `models/local_adapter.py` (`LocalAdapter`, `FDN`); parameter names
    as in diffusers' ControlNet, where it has the layer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks import MidBlock, ResnetBlock, SpatialTransformer, TimeMlp, sinusoids
from controlkit.adapters.blocks.encoder import Downsample
from controlkit.adapters.blocks.encoder_copy import check_rows, skip_channels, zero_conv
from controlkit.adapters.uni_controlnet.config import PIXELS_PER_LATENT, LocalConfig
from controlkit.contracts import Residuals
from controlkit.errors import HintError, ParameterError

EPS = 1e-5

Modulation = tuple[Tensor, ...]
"""Scale and shift of a block's first norm, then of its second: four times (batch, channels, h, w)."""


class Extractor(nn.Module):
    """Maps (batch, local_channels, 8h, 8w) to one feature per level, h x w and each next one half that."""

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        first, second, third = config.stem_channels
        sizes = ((config.local_channels, first), (first, second), (second, second), (second, third))
        self.stem = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, stride=1 + index % 2)
            for index, (before, after) in enumerate((*sizes, (third, third)))
        )
        widths = config.inject_channels
        self.levels = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, stride=2) for before, after in pairwise((third, *widths))
        )
        self.outputs = nn.ModuleList(zero_conv(width, width, 3) for width in widths)

    def forward(self, maps: Tensor) -> tuple[Tensor, ...]:
        for conv in self.stem:
            maps = F.silu(conv(maps))
        features: list[Tensor] = []
        for conv, output in zip(self.levels, self.outputs, strict=True):
            maps = F.silu(conv(maps))
            features.append(output(maps))
        return tuple(features)


class FeatureNorm(nn.Module):
    """Group norm whose scale and shift are convolutions of a feature: ``norm(x) * (1 + gamma) + beta``."""

    def __init__(self, groups: int, channels: int, features: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv_gamma = nn.Conv2d(features, channels, 3, padding=1)
        self.conv_beta = nn.Conv2d(features, channels, 3, padding=1)

    def modulation(self, feature: Tensor) -> Modulation:
        """Scale and shift, which are the same at every step."""
        return 1 + self.conv_gamma(feature), self.conv_beta(feature)

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        scale, shift = modulation
        return F.group_norm(x, self.groups, eps=EPS) * scale + shift


class InjectedBlock(nn.Module):
    """A `ResnetBlock` whose two norms are modulated by a feature of the maps."""

    def __init__(self, inputs: int, outputs: int, time_dim: int, *, groups: int, features: int) -> None:
        super().__init__()
        self.norm1 = FeatureNorm(groups, inputs, features)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, outputs)
        self.norm2 = FeatureNorm(groups, outputs, features)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def modulation(self, feature: Tensor) -> Modulation:
        return (*self.norm1.modulation(feature), *self.norm2.modulation(feature))

    def forward(self, x: Tensor, time: Tensor, modulation: Modulation) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x, modulation[:2])))
        hidden = hidden + self.time_emb_proj(time)[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden, modulation[2:])))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Level(nn.Module):
    """Residual blocks, one of which may be modulated, each followed by attention, then the downsampler."""

    def __init__(self, config: LocalConfig, level: int, time_dim: int) -> None:
        super().__init__()
        widths, layers, groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        width = widths[level]
        first = 1 + level * (layers + 1)
        inputs = [widths[max(0, level - 1)]] + [width] * (layers - 1)
        self.resnets = nn.ModuleList()
        for index, before in enumerate(inputs):
            if first + index in config.inject_layers:
                features = config.inject_channels[level]
                block = InjectedBlock(before, width, time_dim, groups=groups, features=features)
            else:
                block = ResnetBlock(before, width, time_dim, groups=groups, eps=EPS)
            self.resnets.append(block)
        self.attentions = nn.ModuleList(
            _transformer(config, level) for _ in range(layers if config.attends[level] else 0)
        )
        is_last = level == len(widths) - 1
        self.downsamplers = None if is_last else nn.ModuleList([Downsample(width, padding=1)])

    def modulation(self, feature: Tensor) -> Modulation:
        """Of the block in this level that reads the feature."""
        block = next(block for block in self.resnets if isinstance(block, InjectedBlock))
        return block.modulation(feature)

    def forward(
        self, x: Tensor, time: Tensor, tokens: Tensor, modulation: Modulation | None
    ) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for index, block in enumerate(self.resnets):
            x = block(x, time, modulation) if isinstance(block, InjectedBlock) else block(x, time)
            if self.attentions:
                x = self.attentions[index](x, tokens)
            outputs.append(x)
        if self.downsamplers is not None:
            outputs.append(self.downsamplers[0](x))
        return tuple(outputs)


class LocalAdapter(nn.Module):
    """A copy of the U-Net's encoder, modulated by features of all maps together.

    Args:
        config: What to build. New weights leave the U-Net as it is.
    """

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups = config.block_out_channels, config.norm_num_groups
        time_dim = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeMlp(widths[0], time_dim)
        self.extractor = Extractor(config)
        self.down_blocks = nn.ModuleList(_Level(config, level, time_dim) for level in range(len(widths)))
        self.mid_block = MidBlock(
            lambda: ResnetBlock(widths[-1], widths[-1], time_dim, groups=groups, eps=EPS),
            _transformer(config, len(widths) - 1),
        )
        self.controlnet_down_blocks = nn.ModuleList(
            zero_conv(width, width) for width in skip_channels(widths, config.layers_per_block)
        )
        self.controlnet_mid_block = zero_conv(widths[-1], widths[-1])

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor | float,
        tokens: Tensor,
        maps: Tensor | None = None,
        *,
        encoded: tuple[Modulation, ...] | None = None,
    ) -> Residuals:
        """Residuals at strength 1.

        Args:
            latents: (batch, in_channels, h, w), as the U-Net gets them, in the weights' dtype.
            timesteps: () or (batch,), in [0, 1000), high is noisy.
            tokens: (batch, n, cross_attention_dim): the text's, and after them those of the global half
                where it is used, times its strength.
            maps: (batch or 1, local_channels, 8h, 8w): RGB maps in [0, 1] stacked in the order of
                ``config.names``, zeros for absent ones.
            encoded: What `encode` made of the maps; then they are not needed.

        Returns:
            ``skips`` in the U-Net's order and ``mid``.

        Raises:
            ParameterError: Neither maps nor what was made of them, or both; tokens of another width.
            HintError: The maps do not fit the latents.
            BatchMismatch: Another number of rows than the latents have.
        """
        if (maps is None) == (encoded is None):
            raise ParameterError(
                "maps and encoded", found="neither" if maps is None else "both", expected="one of them"
            )
        rows = latents.shape[0]
        self._check_tokens(tokens, rows)
        if encoded is None:
            assert maps is not None
            encoded = self.encode(maps.to(latents.dtype))
        self._check_fit(encoded, latents)
        steps = torch.as_tensor(timesteps, device=latents.device).reshape(-1)
        check_rows("timesteps", steps, rows, one=True)
        angles = sinusoids(steps.expand(rows), self.config.block_out_channels[0])
        time = F.silu(self.time_embedding(angles.to(latents.dtype)))
        skips = [self.conv_in(latents)]
        for level, block in enumerate(self.down_blocks):
            modulation = encoded[level] if level < len(encoded) else None
            skips.extend(block(skips[-1], time, tokens, modulation))
        mid = self.controlnet_mid_block(self.mid_block(skips[-1], time, tokens))
        outputs = (conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True))
        return Residuals(skips=tuple(outputs), mid=mid)

    def features(self, maps: Tensor) -> tuple[Tensor, ...]:
        """What the extractor sees in the maps, one feature per level.

        Args:
            maps: (batch, local_channels, H, W), in [0, 1], in the weights' dtype.

        Returns:
            (batch, channels, h, w) each; the first H and W divided by 8, each next one half that, rounded up.

        Raises:
            HintError: Another number of channels.
        """
        channels = self.config.local_channels
        if maps.ndim != 4 or maps.shape[1] != channels:
            raise HintError(
                "maps",
                found=f"shape {tuple(maps.shape)}",
                expected=f"(batch, {channels}, height, width)",
                fix=f"Stack RGB maps in [0, 1] in the order {', '.join(self.config.names)}; zeros if absent.",
            )
        return self.extractor(maps)

    def encode(self, maps: Tensor) -> tuple[Modulation, ...]:
        """Everything that depends on the maps alone, once for many steps; for the argument ``encoded``.

        Raises:
            HintError: Another number of channels.
        """
        features = self.features(maps)[: len(self.config.inject_layers)]
        levels = cast(list[_Level], list(self.down_blocks)[: len(features)])
        return tuple(level.modulation(feature) for level, feature in zip(levels, features, strict=True))

    def _check_fit(self, encoded: tuple[Modulation, ...], latents: Tensor) -> None:
        first, (height, width) = encoded[0][0], latents.shape[-2:]
        if tuple(first.shape[-2:]) != (height, width):
            raise HintError(
                "maps",
                found=f"features of {first.shape[-2]}x{first.shape[-1]}",
                expected=f"{height}x{width}, the latents' size",
                fix=f"The maps must be {PIXELS_PER_LATENT} times as large as the latents: "
                f"{PIXELS_PER_LATENT * height}x{PIXELS_PER_LATENT * width}.",
            )
        check_rows("maps", first, latents.shape[0], one=True)

    def _check_tokens(self, tokens: Tensor, rows: int) -> None:
        width = self.config.cross_attention_dim
        if tokens.ndim != 3 or tokens.shape[-1] != width:
            raise ParameterError(
                "tokens", found=f"shape {tuple(tokens.shape)}", expected=f"(batch, n, {width})"
            )
        check_rows("tokens", tokens, rows)


def _transformer(config: LocalConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        config.block_out_channels[level],
        config.heads[level],
        config.cross_attention_dim,
        depth=config.depths[level],
        groups=config.norm_num_groups,
        linear=config.use_linear_projection,
    )
