"""What a ControlNet does during a run: its map encoded once, its network run for the steps that act.

The network is in `model.py`; scale, window, mode and region belong to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from controlkit.adapters.controlnet.model import ControlNet, skip_channels
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
class ControlNetControl:
    """A ControlNet bound to its map. Adds to the skips and the middle; reads the prompt's tokens.

    Per acting step it costs one forward of the network for all rows it acts on; per run one of the hint
    encoder for each distinct map.
    """

    module: ControlNet
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
        config = self.module.config
        pooled = config.projection_class_embeddings_input_dim if config.addition_embed_type else None
        ours = (
            config.in_channels,
            config.cross_attention_dim,
            skip_channels(config.block_out_channels, config.layers_per_block),
            pooled,
        )
        theirs = (target.channels, target.token_dim, target.skip_channels, target.added_dim)
        if ours != theirs:
            levels = "/".join(map(str, config.block_out_channels))
            raise BaseMismatch(
                self.name,
                found=f"a ControlNet for {self.module.base} (tokens {config.cross_attention_dim} wide,"
                f" levels {levels}, latents of {config.in_channels} channels)",
                expected=f"one for {target.describe()} with latents of {target.channels} channels",
                fix="Use the module made for this base model, or the base model it was made for.",
            )

    def prepare(self, run: RunInfo) -> Active:
        net = self.module
        factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
        maps, notes = self.map.fitted(self.name, run, (run.height * factor, run.width * factor))
        borrowed = Borrowed(net, run)
        counts = {"hint": 0, "forward": 0}
        encoded: list[Tensor] = []

        def hint(step: Step) -> Tensor:
            if not encoded:
                counts["hint"] += 1
                encoded.append(net.encode_hint(maps.to(run.device, borrowed.dtype)))
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
