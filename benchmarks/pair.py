"""What do the benchmarks compare? One tiny random model, driven by controlkit and by diffusers itself.

Both pipelines share every weight and start from the same noise, so that their latents can be compared and
only the way they drive the ControlNet differs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import controlkit as ck

sys.path.append(str(Path(__file__).resolve().parent.parent))
tiny: Any = import_module("tests.tiny")

logging.getLogger("diffusers").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Case:
    """How the one ControlNet is bound; guidance is always on, and unused where ``scale`` is 0."""

    name: str
    scale: float = 1.0
    end: float = 1.0


class Pair:
    """A plain pipeline for controlkit, diffusers' ControlNet pipeline, and one ControlNet for each.

    Args:
        pixels: Side of the picture and of the map.
        changes: Of the configs of `tests.tiny`, such as wider ``block_out_channels``.
    """

    def __init__(self, pixels: int, changes: Mapping[str, Any] | None = None) -> None:
        changes = changes or {}
        self.pixels = pixels
        self.map = torch.rand(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(20))
        self.net = tiny.controlnet("sd1", **changes)
        self.twin: Any = diffusers.ControlNetModel.from_config(self.net.config.to_dict())
        self.twin.load_state_dict(self.net.state_dict())
        self.twin.eval()
        parts = tiny.components("sd1") | {"unet": tiny.unet("sd1", **changes)}
        self.plain: Any = diffusers.StableDiffusionPipeline(**parts)
        self.theirs: Any = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=self.twin)
        for pipe in (self.plain, self.theirs):
            pipe.set_progress_bar_config(disable=True)

    def run_plain(self, steps: int) -> Tensor:
        """Latents without any control."""
        return self._call(self.plain, steps)

    def run_controlkit(self, steps: int, case: Case) -> Tensor:
        """Latents of controlkit; attaching and detaching included."""
        with ck.attach(self.plain, self.net.on(self.map, scale=case.scale, end=case.end)):
            return self._call(self.plain, steps)

    def run_diffusers(self, steps: int, case: Case) -> Tensor:
        """Latents of diffusers' ControlNet pipeline."""
        return self._call(
            self.theirs,
            steps,
            image=self.map,
            controlnet_conditioning_scale=float(case.scale),
            control_guidance_end=case.end,
        )

    def _call(self, pipe: Any, steps: int, **control: Any) -> Tensor:
        return pipe(
            "a red cube",
            height=self.pixels,
            width=self.pixels,
            num_inference_steps=steps,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
            **control,
        ).images
