"""The levels of a U-Net's encoder and its middle block.

Source:
    Rombach et al. (2022), arXiv:2112.10752; the operations and parameter names of diffusers 0.42
    (`ResnetBlock2D`, `DownBlock2D`, `CrossAttnDownBlock2D`, `UNetMidBlock2DCrossAttn`), to the bit in
    float32.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks.transformer import SpatialTransformer


class ResnetBlock(nn.Module):
    """Two convolutions with a shortcut, shifted by the time embedding.

    Args:
        inputs: Channels in.
        outputs: Channels out; a 1x1 convolution is on the shortcut where they differ.
        time_dim: Width of the time embedding.
        groups: Groups of both norms.
        eps: Of both norms.
        divisor: The sum with the shortcut is divided by this (diffusers' ``output_scale_factor``).
    """

    def __init__(
        self, inputs: int, outputs: int, time_dim: int, *, groups: int, eps: float, divisor: float = 1.0
    ) -> None:
        super().__init__()
        self.divisor = divisor
        self.norm1 = nn.GroupNorm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h, w); ``time`` (batch, time_dim), after its SiLU."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(time)[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return x + hidden if self.divisor == 1.0 else (x + hidden) / self.divisor


class Downsample(nn.Module):
    """Halve the size with a strided convolution; without padding, one row and column of zeros are added."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding != (0, 0) else F.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    """One level: residual blocks, each followed by attention where there is any, then the downsampler.

    Args:
        resnets: At least one.
        attentions: As many, or none.
        downsample: None at the last level.
    """

    def __init__(
        self,
        resnets: list[ResnetBlock],
        attentions: list[SpatialTransformer] | None = None,
        downsample: Downsample | None = None,
    ) -> None:
        super().__init__()
        if attentions is not None:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        self.downsamplers = None if downsample is None else nn.ModuleList([downsample])
        self.attends = attentions is not None

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """What the level's skip connections hold, the last of which is the next level's input."""
        outputs: list[Tensor] = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attends:
                x = self.attentions[index](x, tokens)
            outputs.append(x)
        if self.downsamplers is not None:
            outputs.append(self.downsamplers[0](x))
        return tuple(outputs)


class MidBlock(nn.Module):
    """Between encoder and decoder: a residual block, and where there is attention, that and another.

    Args:
        resnet: Makes one residual block; called once or twice.
        attention: None for diffusers' ``UNetMidBlock2D`` without layers.
    """

    def __init__(self, resnet: Callable[[], ResnetBlock], attention: SpatialTransformer | None) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([] if attention is None else [attention])
        self.resnets = nn.ModuleList(resnet() for _ in range(1 if attention is None else 2))

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """(batch, channels, h, w) to the same shape."""
        x = self.resnets[0](x, time)
        for attention, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            x = resnet(attention(x, tokens), time)
        return x
