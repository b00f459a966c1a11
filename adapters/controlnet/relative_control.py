"""What a ControlNet stored relative to its base does during a run: it is completed from the U-Net in force.

Once per run, and freed when it ends: what the U-Net's weights are by then (merged LoRAs, other weights
loaded into it) is what counts. The pipeline's own weights are read and not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlkit.adapters.blocks.encoder_copy import refuse_other_base
from controlkit.adapters.controlnet.control import ControlNetControl
from controlkit.adapters.controlnet.relative_model import RelativeControlNet
from controlkit.binding import BoundMap, name_of, refuse_meta
from controlkit.contracts import Active, RunInfo, Slot, Target
from controlkit.errors import NotApplicable
from controlkit.strength import Strength


@dataclass(frozen=True, eq=False)
class RelativeControl:
    """A Control-LoRA or a difference bound to its map. Adds to the skips and the middle.

    During a run it holds a whole ControlNet in the U-Net's dtype beside what is stored: in float16 0.7 GB
    for SD 1 and 2.5 GB for SDXL. Each run begins by making it, one small matrix product per weight. Who
    attaches it often can make it once: ``module.with_base(pipe).on(map)``.
    """

    module: RelativeControlNet
    map: BoundMap
    strength: Strength

    @property
    def name(self) -> str:
        return name_of(self.module)

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(("skips", "mid"))

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        refuse_other_base(self.name, self.module.title, self.module.config, target)

    def prepare(self, run: RunInfo) -> Active:
        if run.weights is None:
            raise NotApplicable(
                self.name,
                found=f"{self.module.title}, and a host that does not give the U-Net's weights",
                expected="these, as it is stored relative to them",
                fix="Attach module.with_base(unet).on(map).",
            )
        net = self.module.complete(run.weights(), run.dtype).to(run.device)
        active = ControlNetControl(net, self.map, self.strength, name_of(self.module)).prepare(run)
        size = sum(parameter.nbytes for parameter in net.parameters()) / 1e6
        note = f"completed from the pipeline's U-Net ({size:.3g} MB while it runs)"
        return replace(active, notes=(note, *active.notes))
