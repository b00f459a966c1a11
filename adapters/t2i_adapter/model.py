"""The T2I-Adapter networks: a control map in, one feature map per level of the U-Net's encoder out.

What it does during a run is in `control.py`.

Source:
    Mou et al. (2023), arXiv:2302.08453, section 3.3; operations and parameter names of diffusers 0.42
    `models/adapter.py`, to the bit in float32 on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.checkpoints.config import Keys, as_dict, parse, validate
from controlkit.errors import ConfigError, HintError
from controlkit.module import MapModule

if TYPE_CHECKING:
    from controlkit.binding import BoundMap
    from controlkit.contracts import Control
    from controlkit.strength import Strength

_BASES = {(320, 640, 1280, 1280): "sd1", (320, 640, 1280): "sd1", (96, 144): "embedded"}


@dataclass(frozen=True)
class T2IAdapterConfig:
    """The config keys of diffusers' ``T2IAdapter``, with its defaults.

    Args:
        in_channels: Channels of the control map: 1 for line maps of the first models, else 3.
        channels: Of each feature map. ``light_adapter`` repeats the last.
        num_res_blocks: Residual blocks per level.
        downscale_factor: Side of the pixel blocks that are folded into channels: 8, or 16 for SDXL.
        adapter_type: ``full_adapter``, ``light_adapter`` or ``full_adapter_xl``.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: Literal["full_adapter", "light_adapter", "full_adapter_xl"] = "full_adapter"

    def __post_init__(self) -> None:
        validate(self)
        narrow = self.adapter_type == "light_adapter" and min(self.channels) < 4
        uneven = self.adapter_type == "full_adapter_xl" and len(set(self.channels[2:])) > 1
        if narrow or uneven:
            raise ConfigError(
                "config channels",
                found=str(list(self.channels)),
                expected="at least 4 each" if narrow else "the same from the third on, as SDXL's encoder has",
                fix="Use the config.json that came with the weights.",
            )

    @property
    def base(self) -> str:
        """The base model this fits: SD 1 and SD 2 have the same encoder, so both are ``sd1``."""
        if self.adapter_type == "full_adapter_xl":
            return "sdxl" if self.channels == (320, 640, 1280, 1280) else "other"
        return _BASES.get(self.channels, "other")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "config") -> T2IAdapterConfig:
        """Read the entries of a config.json; see `parse` for the errors."""
        return parse(cls, values, Keys(classes=("T2IAdapter",)), what)

    def to_dict(self) -> dict[str, Any]:
        """The entries of a config.json that diffusers reads."""
        return as_dict(self, "T2IAdapter")


class _Residual(nn.Module):
    """Convolution, ReLU, convolution, with a shortcut."""

    def __init__(self, channels: int, last_kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, last_kernel, padding=last_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(F.relu(self.block1(x))) + x


class _Level(nn.Module):
    """Optional halving, optional 1x1 convolution, residual blocks, and in light adapters a way back."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, down: bool, light: bool) -> None:
        super().__init__()
        self.down = down
        width = outputs // 4 if light else outputs
        self.in_conv = nn.Conv2d(inputs, width, 1) if light or inputs != outputs else None
        self.resnets = nn.Sequential(*(_Residual(width, 3 if light else 1) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(width, outputs, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


class _Body(nn.Module):
    """Everything with weights, under the name ``adapter`` that diffusers gives it."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        light = config.adapter_type == "light_adapter"
        widths = config.channels
        folded = config.in_channels * config.downscale_factor**2
        self.conv_in = None if light else nn.Conv2d(folded, widths[0], 3, padding=1)
        before = (folded if light else widths[0], *widths)
        after = (*widths, widths[-1]) if light else widths
        self.body = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip(before, after, strict=False)):
            xl = config.adapter_type == "full_adapter_xl"
            if xl and level not in (1, 2):
                inputs = outputs
            down = level == 2 if xl else level > 0
            self.body.append(_Level(inputs, outputs, config.num_res_blocks, down=down, light=light))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.conv_in is not None:
            x = self.conv_in(x)
        features: list[Tensor] = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return tuple(features)


class T2IAdapter(MapModule):
    """A network that reads a control map once per run; its features are added at every step.

    Args:
        config: What to build; new weights are random.

    Attributes:
        config: The same, frozen.
    """

    kind: ClassVar[str] = "t2i-adapter"

    def __init__(self, config: T2IAdapterConfig | None = None) -> None:
        super().__init__()
        self.config = config or T2IAdapterConfig()
        self.adapter = _Body(self.config)

    @property
    def base(self) -> str:
        """``sd1`` (SD 2 too), ``sdxl``, ``embedded`` or ``other``, told by type and widths."""
        return self.config.base

    def forward(self, control_map: Tensor) -> tuple[Tensor, ...]:
        """One feature map per level, at scale 1.

        Args:
            control_map: (batch, in_channels, H, W), in [0, 1], in the weights' dtype; both sides
                multiples of ``downscale_factor``.

        Returns:
            (batch, channels, h, w) per level. The first is H and W divided by ``downscale_factor``; each
            next one is half that, rounded up (SDXL: the third alone is halved).

        Raises:
            HintError: Another number of channels, or a side that does not divide.
        """
        channels, factor = self.config.in_channels, self.config.downscale_factor
        if control_map.ndim != 4 or control_map.shape[1] != channels:
            raise HintError(
                "control_map",
                found=f"shape {tuple(control_map.shape)}",
                expected=f"(batch, {channels}, height, width)",
                fix="Average RGB to one channel." if channels == 1 else "Give RGB in [0, 1], without alpha.",
            )
        height, width = control_map.shape[-2:]
        if height % factor or width % factor or not height or not width:
            raise HintError(
                "control_map",
                found=f"{height}x{width} pixels",
                expected=f"multiples of {factor}",
                fix=f"Resize or pad it to {max(1, -(-height // factor)) * factor}"
                f"x{max(1, -(-width // factor)) * factor}.",
            )
        return self.adapter(F.pixel_unshuffle(control_map, factor))

    @property
    def map_channels(self) -> int:
        return self.config.in_channels

    def bind(self, bound: BoundMap, strength: Strength) -> Control:
        from controlkit.adapters.t2i_adapter.control import T2IAdapterControl

        return T2IAdapterControl(self, bound, strength)

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()
