"""U-Nets that return what a function says, and the original's schedules on diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

diffusers: Any = import_module("diffusers")
outputs: Any = import_module("diffusers.models.unets.unet_2d_condition")


class StandIn(diffusers.UNet2DConditionModel):
    """For three channels in pixel space; ``predict(x, t)`` gives the noise, with variances where ``wide``."""

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor], *, wide: bool = False) -> None:
        super().__init__(
            in_channels=3,
            out_channels=6 if wide else 3,
            block_out_channels=(32,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            mid_block_type=None,
            layers_per_block=1,
            cross_attention_dim=8,
        )
        self.predict = predict

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        prediction = self.predict(sample, torch.as_tensor(timestep).reshape(-1))
        return outputs.UNet2DConditionOutput(sample=prediction)


def ddpm(timesteps: Sequence[int], **settings: Any) -> Any:
    """DDPM on guided-diffusion's linear schedule, in float64 as there, respaced to these timesteps."""
    scheduler = diffusers.DDPMScheduler(**{"beta_schedule": "linear", "beta_end": 0.02, **settings})
    scheduler.set_timesteps(timesteps=list(timesteps))
    return _exact(scheduler)


def ddim(steps: int, **settings: Any) -> Any:
    """The same for DDIM with so many equal strides from 0 on, which guided-diffusion calls ``ddimN``."""
    scheduler = diffusers.DDIMScheduler(**{"beta_schedule": "linear", "beta_end": 0.02, **settings})
    scheduler.set_timesteps(steps)
    scheduler = _exact(scheduler)
    scheduler.final_alpha_cumprod = scheduler.one
    return scheduler


def _exact(scheduler: Any) -> Any:
    betas = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@contextmanager
def noise_of(*values: Tensor) -> Iterator[None]:
    """DDPM draws these, one per step that adds noise."""
    left = iter(values)
    with patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(left)):
        yield
