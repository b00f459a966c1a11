"""What a T2I-Adapter does during a run: its features computed once, added at every step that acts.

The network is in `model.py`; scale, window, mode and region belong to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from controlkit.adapters.t2i_adapter.config import T2IAdapterConfig
from controlkit.adapters.t2i_adapter.model import T2IAdapter
from controlkit.binding import (
    Borrowed,
    BoundMap,
    PerBranches,
    name_of,
    refuse_meta,
    spread,
)
from controlkit.contracts import Active, Residuals, RunInfo, Slot, Step, Target
from controlkit.errors import BaseMismatch
from controlkit.strength import Strength


@dataclass(frozen=True, eq=False)
class T2IAdapterControl:
    """A T2I-Adapter bound to its map. Adds inside the encoder; reads neither latents nor prompt.

    Costs one forward of its small network per run and distinct map, and one addition per level and step.
    """

    module: T2IAdapter
    map: BoundMap
    strength: Strength

    @property
    def name(self) -> str:
        return name_of(self.module)

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(("encoder",))

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        ours = feature_shapes(self.module.config, target.pixel_scale)
        theirs = list(zip(target.encoder_channels, target.encoder_strides, strict=True))
        if ours not in (theirs, theirs[:-1]):
            shapes = ", ".join(f"{channels} at 1/{stride:g}" for channels, stride in ours)
            places = ", ".join(f"{channels} at 1/{stride:g}" for channels, stride in theirs[:-1])
            raise BaseMismatch(
                self.name,
                found=f"a T2I-Adapter for {self.module.base} with features of {shapes} of the latents' size",
                expected=f"{places} for {target.describe()}",
                fix="Use the adapter made for this base model, or the base model it was made for.",
            )
        self.strength.split_block_scales(len(ours))

    def prepare(self, run: RunInfo) -> Active:
        net, factor = self.module, self.module.config.downscale_factor
        height, width = run.pixels
        maps, notes = self.map.fitted(self.name, run, (height, width))
        short = (0, -width % factor, 0, -height % factor)
        borrowed = Borrowed(net, run)
        counts = {"forward": 0}
        made: list[tuple[Tensor, ...]] = []

        def features(step: Step) -> tuple[Tensor, ...]:
            if not made:
                borrowed.ready()
                counts["forward"] += 1
                padded = functional.pad(maps, short) if any(short) else maps
                made.append(net(padded.to(run.device, borrowed.dtype), round_up=True))
                borrowed.back()
            return tuple(spread(level, step) for level in made[0])

        shared = PerBranches(features)
        return Active(
            residuals=lambda step: Residuals(encoder=shared.get(step)),
            notes=(*notes, *borrowed.notes(), *_rounding(net.config, (height, width))),
            counts=counts,
            close=borrowed.back,
        )


def _rounding(config: T2IAdapterConfig, pixels: tuple[int, int]) -> tuple[str, ...]:
    """A remark where the original would round sizes down, which fits no U-Net."""
    halvings = max(_halvings(config))
    odd = any(-(-side // config.downscale_factor) % 2**halvings for side in pixels)
    floors = config.pooling == "floor" and not config.use_conv
    return ("odd sizes rounded up, where the original stops with an error",) if odd and floors else ()


def _halvings(config: T2IAdapterConfig) -> list[int]:
    xl = config.adapter_type == "full_adapter_xl"
    return [int(level >= 2) if xl else level for level in range(len(config.feature_channels))]


def feature_shapes(config: T2IAdapterConfig, pixel_scale: int) -> list[tuple[int, float]]:
    """Channels of each feature, and its size as latent size divided by this."""
    first = config.downscale_factor / pixel_scale
    return [
        (width, first * 2**times)
        for width, times in zip(config.feature_channels, _halvings(config), strict=True)
    ]
