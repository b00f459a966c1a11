"""Watching one picture being made: how far it is, what it will look like, and stopping it.

Stands in front of the ``step`` of the scheduler that the picture is made with (a fresh one for every picture,
so that nothing is left on the pipeline), sees what goes in, and changes nothing of it.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SIDE = 32
"""Longest side, in latents, at which a preview is decoded: larger ones are averaged down to it first."""

SHARE = 0.2
"""Most of the time that previews may take."""


class Stopped(Exception):
    """Raised inside a run to end it."""


@contextmanager
def watching(
    pipe: Any, show: Callable[[Image.Image], None], stop: Callable[[], bool], share: float = SHARE
) -> Iterator[None]:
    """Show the predicted picture from time to time, and end the run when it is to stop.

    Args:
        pipe: The pipeline, with the scheduler that this picture is made with.
        show: Gets each preview.
        stop: Asked before each step.
        share: Most of the time that previews may take, 0 for none of it, 1 for one at every step.

    Raises:
        Stopped: Out of the pipeline's call, within one step after ``stop`` said so.
    """
    scheduler = pipe.scheduler
    original = scheduler.step
    own = vars(scheduler).get("step")
    free = 0.0

    @functools.wraps(original)
    def step(model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        nonlocal free
        if stop():
            raise Stopped
        begun = time.monotonic()
        if share > 0 and begun >= free:
            picture = predicted(pipe, scheduler, model_output, timestep, sample)
            if picture is not None:
                show(picture)
            now = time.monotonic()
            free = now + (now - begun) * (1 / share - 1)
        return original(model_output, timestep, sample, *args, **options)

    scheduler.step = step
    try:
        yield
    finally:
        if own is None:
            vars(scheduler).pop("step", None)
        else:
            scheduler.step = own


def predicted(pipe: Any, scheduler: Any, output: Any, timestep: Any, sample: Any) -> Image.Image | None:
    """The picture that the model expects at this step, decoded small; None where that cannot be told.

    Args:
        pipe: A pipeline with a VAE.
        scheduler: Its scheduler, before its step.
        output: The noise (or velocity, or picture) that goes into the step, (1, 4, h, w).
        timestep: Of this step.
        sample: The latents that go into the step.
    """
    import torch

    try:
        with torch.no_grad():
            clean = _clean(scheduler, output, timestep, sample)
            return None if clean is None else _decoded(pipe, clean[:1])
    except Exception:  # a preview is worth no picture
        return None


def _clean(scheduler: Any, output: Any, timestep: Any, sample: Any) -> Tensor | None:
    """x̂₀ from x_t, as the prediction type has it; x_t variance-preserving, as the U-Net got it."""
    from controlkit.hosts.clock import alpha_bar

    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "sample":
        return output
    level = alpha_bar(scheduler, _entry(scheduler, timestep), timestep)
    if level is None or not 0 < level < 1:
        return None
    noisy = scheduler.scale_model_input(sample, timestep)
    signal, noise = math.sqrt(level), math.sqrt(1 - level)
    if kind == "v_prediction":
        return signal * noisy - noise * output
    return (noisy - noise * output) / signal if kind == "epsilon" else None


def _entry(scheduler: Any, timestep: Any) -> int:
    index = getattr(scheduler, "step_index", None)
    if index is not None:
        return int(index)
    found = (scheduler.timesteps == timestep).nonzero()
    return int(found[0]) if len(found) else 0


def _decoded(pipe: Any, clean: Tensor) -> Image.Image | None:
    import torch
    from torch.nn import functional as F

    from controlkit.images import to_picture

    height, width = clean.shape[-2:]
    longest = max(height, width)
    if longest > SIDE:
        size = max(1, height * SIDE // longest), max(1, width * SIDE // longest)
        clean = F.interpolate(clean.float(), size, mode="area").to(clean.dtype)
    config = pipe.vae.config
    latents = clean.to(pipe.vae.dtype) / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    pixels = pipe.vae.decode(latents, return_dict=False)[0][0].float()
    if not bool(torch.isfinite(pixels).all()):
        return None
    return to_picture((pixels / 2 + 0.5).clamp(0, 1))
