"""The embedded model's autoencoder with torch alone, for hosts that have no diffusers.

Source:
    Rombach et al. (2022), arXiv:2112.10752, appendix G; the names and operations of diffusers 0.42
    (`AutoencoderKL`) without attention, to the bit in float32.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


class Resnet(nn.Module):
    """Two convolutions with a shortcut: (B, inputs, h, w) to (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + hidden


class Halve(nn.Module):
    """A strided convolution, with one row and column of zeros after the last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one size, and what leads to the next."""

    def __init__(
        self, inputs: int, outputs: int, count: int, groups: int, last: Halve | Double | None
    ) -> None:
        super().__init__()
        widths = (inputs, *[outputs] * count)
        self.resnets = nn.ModuleList(Resnet(a, b, groups) for a, b in itertools.pairwise(widths))
        if isinstance(last, Halve):
            self.downsamplers = nn.ModuleList([last])
        elif last is not None:
            self.upsamplers = nn.ModuleList([last])
        self._last = [] if last is None else [last]  # in a list, so that it is not registered twice

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self._last]:
            x = layer(x)
        return x


class Middle(nn.Module):
    """Two residual blocks, without attention."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.resnets:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of their latents."""

    def __init__(self, widths: list[int], count: int, groups: int, channels: int, latents: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(a, b, count, groups, Halve(b) if i < len(widths) - 1 else None)
            for i, (a, b) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True))
        )
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latents, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, widths: list[int], count: int, groups: int, channels: int, latents: int) -> None:
        super().__init__()
        deep = widths[::-1]
        self.conv_in = nn.Conv2d(latents, deep[0], 3, padding=1)
        self.mid_block = Middle(deep[0], groups)
        self.up_blocks = nn.ModuleList(
            Level(a, b, count + 1, groups, Double(b) if i < len(deep) - 1 else None)
            for i, (a, b) in enumerate(zip([deep[0], *deep[:-1]], deep, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, deep[-1], eps=EPS)
        self.conv_out = nn.Conv2d(deep[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """Pixels in [-1, 1] to latents and back.

    Args:
        widths: Channels of each level.
        count: Residual blocks of each level of the encoder; the decoder has one more.
        groups: Of every norm.
        channels: Of the pixels.
        latents: Channels of the latents.
    """

    def __init__(
        self, widths: list[int], count: int, groups: int, channels: int = 3, latents: int = 4
    ) -> None:
        super().__init__()
        self.encoder = Encoder(widths, count, groups, channels, latents)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        self.decoder = Decoder(widths, count, groups, channels, latents)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to the mode of its latents (B, 4, H/8, W/8), unscaled."""
        return self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w), unscaled, to pixels (B, 3, 8h, 8w), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))

    @classmethod
    def load(cls, folder: Path) -> Autoencoder:
        """Read a folder in diffusers' layout, in float32, without gradients of its weights."""
        from safetensors.torch import load_file

        config = json.loads((folder / "config.json").read_text())
        model = cls(
            config["block_out_channels"],
            config["layers_per_block"],
            config["norm_num_groups"],
            config["in_channels"],
            config["latent_channels"],
        )
        model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        return model.float().eval().requires_grad_(False)
