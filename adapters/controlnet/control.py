"""What a ControlNet does during a run: its map encoded once, its network run for the steps that act.

The network is in `model.py`; scale, window, mode and region belong to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from controlkit.adapters.blocks.encoder_copy import hint_factor, refuse_other_base
from controlkit.adapters.controlnet.model import ControlNet
from controlkit.binding import (
    Borrowed,
    BoundMap,
    PerBranches,
    name_of,
    refuse_meta,
    spread,
)
from controlkit.contracts import Active, Residuals, RunInfo, Slot, Step, Target
from controlkit.strength import Strength


@dataclass(frozen=True, eq=False)
class ControlNetControl:
    """A ControlNet bound to its map. Adds to the skips and the middle; reads the prompt's tokens.

    Per acting step it costs one forward of the network for all rows it acts on; per run one of the hint
    encoder for each distinct map.

    Args:
        module: The network.
        map: What it reads.
        strength: Its scale, window, mode and region.
        called: What reports and errors call it, where that is not told by the module.
    """

    module: ControlNet
    map: BoundMap
    strength: Strength
    called: str = ""

    @property
    def name(self) -> str:
        return self.called or name_of(self.module)

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(("skips", "mid"))

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        refuse_other_base(self.name, "a ControlNet", self.module.config, target)

    def prepare(self, run: RunInfo) -> Active:
        net = self.module
        factor = hint_factor(net.config)
        maps, notes = self.map.fitted(self.name, run, (run.height * factor, run.width * factor))
        borrowed = Borrowed(net, run)
        counts = {"hint": 0, "forward": 0}
        encoded: list[Tensor] = []

        def hint(step: Step) -> Tensor:
            if not encoded:
                counts["hint"] += 1
                layout = run.map_layout or torch.preserve_format
                encoded.append(net.encode_hint(maps.to(run.device, borrowed.dtype, memory_format=layout)))
            return spread(encoded[0], step)

        hints = PerBranches(hint)

        def residuals(step: Step) -> Residuals:
            borrowed.ready()
            dtype = borrowed.dtype
            tokens = step.prompt
            assert tokens is not None  # check() refuses U-Nets without tokens
            features = hints.get(step)
            counts["forward"] += 1
            return net(
                step.latents.to(dtype),
                step.timestep,
                tokens.to(dtype),
                added={key: value.to(dtype) for key, value in step.added.items()},
                hint=features,
            )

        return Active(
            residuals=residuals,
            cond_only=net.config.global_pool_conditions,
            notes=(*notes, *borrowed.notes(), *_untrained(net)),
            counts=counts,
            close=borrowed.back,
        )


def _untrained(net: ControlNet) -> tuple[str, ...]:
    outputs = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    has_effect = any(p.is_meta or bool(p.any()) for output in outputs for p in output.parameters())
    return () if has_effect else ("no effect: every output convolution is zero (untrained)",)
