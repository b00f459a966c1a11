"""The T2I-Adapter networks: a control map in, one feature map per level of the U-Net's encoder out.

What can be built is in `config.py`, what it does during a run in `control.py`.

Source:
    Mou et al. (2023), arXiv:2302.08453, section 3.3; operations and parameter names of diffusers 0.42
    `models/adapter.py`, to the bit in float32 on CPUs. What diffusers lacks (wide kernels, learned shortcuts
    and downsampling) as in TencentARC/T2I-Adapter@16bba674 `ldm/modules/encoders/adapter.py`, and
    @c408b059 `Adapter/models/adapters.py` for SDXL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.t2i_adapter.config import T2IAdapterConfig
from controlkit.errors import HintError
from controlkit.module import MapModule

if TYPE_CHECKING:
    from controlkit.binding import BoundMap
    from controlkit.contracts import Control
    from controlkit.strength import Strength


class _Residual(nn.Module):
    """Convolution, ReLU, convolution, with a shortcut; ``own`` puts a convolution before and on the shortcut.

    The shortcut starts after the first of these (TencentARC/T2I-Adapter@16bba674, `ResnetBlock`).
    """

    def __init__(self, inputs: int, channels: int, kernel: int, *, own: bool) -> None:
        super().__init__()
        self.in_conv = _same(inputs, channels, kernel) if own else None
        self.block1 = _same(channels, channels, 3)
        self.block2 = _same(channels, channels, kernel)
        self.skep = _same(channels, channels, kernel) if own else None

    def forward(self, x: Tensor) -> Tensor:
        if self.in_conv is not None:
            x = self.in_conv(x)
        shortcut = x if self.skep is None else self.skep(x)
        return self.block2(F.relu(self.block1(x))) + shortcut


class _Level(nn.Module):
    """Optional halving, optional convolution, residual blocks, and in light adapters a way back."""

    def __init__(self, inputs: int, outputs: int, config: T2IAdapterConfig, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.rounds_up = config.pooling == "ceil"
        light = config.adapter_type == "light_adapter"
        width = outputs // 4 if light else outputs
        kernel = 3 if light else config.ksize
        learned = down and config.use_conv
        self.downsample = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1) if learned else None
        meets = light or (config.sk and inputs != outputs)
        self.in_conv = _same(inputs, width, 1 if light else kernel) if meets else None
        first = width if config.sk else inputs
        widths = (first, *[width] * (config.num_res_blocks - 1))
        self.resnets = nn.Sequential(*(_Residual(w, width, kernel, own=not config.sk) for w in widths))
        self.out_conv = nn.Conv2d(width, outputs, 1) if light else None

    def forward(self, x: Tensor, round_up: bool) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.down:
            x = F.avg_pool2d(x, 2, ceil_mode=round_up or self.rounds_up)
        if self.in_conv is not None:
            x = self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


def _same(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class _Body(nn.Module):
    """Everything with weights, under the name ``adapter`` that diffusers gives it."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        light = config.adapter_type == "light_adapter"
        xl = config.adapter_type == "full_adapter_xl"
        folded = config.in_channels * config.downscale_factor**2
        widths = config.feature_channels
        self.conv_in = None if light else _same(folded, widths[0], 3)
        self.body = nn.ModuleList()
        inputs = folded if light else widths[0]
        for level, outputs in enumerate(widths):
            if xl and level not in (1, 2):
                inputs = outputs
            down = level == 2 if xl else level > 0
            self.body.append(_Level(inputs, outputs, config, down=down))
            inputs = outputs

    def forward(self, x: Tensor, round_up: bool) -> tuple[Tensor, ...]:
        if self.conv_in is not None:
            x = self.conv_in(x)
        features: list[Tensor] = []
        for level in self.body:
            x = level(x, round_up)
            features.append(x)
        return tuple(features)


class T2IAdapter(MapModule):
    """A network that reads a control map once per run; its features are added at every step.

    Args:
        config: What to build; new weights are random.

    Attributes:
        config: The same, frozen.
        assumed: Remarks on what neither shapes nor a config told.
    """

    kind: ClassVar[str] = "t2i-adapter"

    def __init__(self, config: T2IAdapterConfig | None = None, assumed: Sequence[str] = ()) -> None:
        super().__init__()
        self.config = config or T2IAdapterConfig()
        self.assumed = tuple(assumed)
        self.adapter = _Body(self.config)

    @property
    def base(self) -> str:
        """``sd1`` (SD 2 too), ``sdxl``, ``embedded`` or ``other``, told by type and widths."""
        return self.config.base

    def forward(self, control_map: Tensor, *, round_up: bool = False) -> tuple[Tensor, ...]:
        """One feature map per level, at scale 1.

        Args:
            control_map: (batch, in_channels, H, W), in [0, 1], in the weights' dtype; both sides
                multiples of ``downscale_factor``.
            round_up: Halve odd sizes as a U-Net does, whatever ``config.pooling`` says.

        Returns:
            (batch, channels, h, w) per level. The first is H and W divided by ``downscale_factor``; each
            next one is half that (SDXL: the third alone is halved). An odd size is rounded up, or down
            where ``config.pooling`` is ``floor``, as in the original; even sizes are the same either way.

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
        return self.adapter(F.pixel_unshuffle(control_map, factor), round_up)

    @property
    def map_channels(self) -> int:
        return self.config.in_channels

    def bind(self, bound: BoundMap, strength: Strength) -> Control:
        from controlkit.adapters.t2i_adapter.control import T2IAdapterControl

        return T2IAdapterControl(self, bound, strength)

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    def original_state(self) -> dict[str, Tensor]:
        """Its weights under the original names, without a prefix, as the published files have them.

        The original rounds odd sizes down; that is not in the names, and is how they are read back.

        Raises:
            Unsupported: The original folds 8x8 pixels, or 16x16 for SDXL, and this module others.
        """
        from controlkit.adapters.t2i_adapter.original import original_names

        state = self.state_dict()
        return {new: state[name] for name, new in original_names(self.config, state).items()}
