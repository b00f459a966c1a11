"""A loop of our own that denoises as the web UI does, with controls put in force by `controlkit.attach`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.webui.networks import tiny_pipeline
from tests.hosts.webui.server import Picture, Server

CHUNK = 77
"""Tokens of a prompt, or of each part of a long one."""
SIDE = 64
"""Pixels of a picture's side, which SDXL's kind is told."""


def loop(webui: Server, made: Picture, *controls: Any, cfg: float = 2.0, name: str = "tiny") -> Tensor:
    """Euler's method with classifier-free guidance, from what the probe wrote of a picture.

    Args:
        webui: Where the checkpoint lies.
        made: The picture, for its noise, prompts and noise levels.
        controls: What to attach.
        cfg: Guidance scale.
        name: Of the checkpoint.
    """
    from diffusers import EulerDiscreteScheduler

    pipeline: Any = tiny_pipeline(webui.base, name)
    levels = [float(level[0]) for level in made.all("sigma")]
    velocity = name == "tiny-v"
    schedule = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        prediction_type="v_prediction" if velocity else "epsilon",
    )
    schedule.set_timesteps(len(levels))
    tokens = torch.cat([made.all("cond")[0], made.all("uncond")[0]])
    if tokens.shape[1] % CHUNK == 1:  # sd-webui-controlnet's, before the prompt's
        tokens = tokens[:, 1:]
    more: dict[str, Any] = {}
    if name == "tiny-xl":
        more["added_cond_kwargs"] = _sizes(pipeline.unet, made)
    beside = made.all("beside")[0] if name == "tiny-inpaint" else None
    x = made.all("x")[0] * levels[0]
    options: Any = {"scheduler": schedule, "branches": ("cond", "uncond")}
    with torch.no_grad(), ck.attach(pipeline, *controls, **options) if controls else torch.no_grad():
        for place, (level, after) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True)):
            signal = 1 / (level**2 + 1) ** 0.5
            rows = torch.cat([x, x]) * signal
            given = rows if beside is None else torch.cat([rows, torch.cat([beside, beside])], dim=1)
            said = pipeline.unet(given, schedule.timesteps[place], tokens, return_dict=False, **more)[0]
            noise = signal * said + level * signal * rows if velocity else said
            cond, uncond = noise.chunk(2)
            x = x + (uncond + cfg * (cond - uncond)) * (after - level)
    return x


def _sizes(unet: Any, made: Picture) -> dict[str, Tensor]:
    """Pooled text and sizes in diffusers' words, from the one vector that the web UI makes of them."""
    vector = torch.cat([made.all("cond_vector")[0], made.all("uncond_vector")[0]])
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2, dtype=torch.float32)
    embedded = unet.add_time_proj(sizes.flatten()).reshape(2, -1)
    pooled = vector[:, : vector.shape[1] - embedded.shape[1]]
    assert torch.allclose(vector[:, pooled.shape[1] :], embedded, atol=1e-4), "the sizes are those"
    return {"text_embeds": pooled, "time_ids": sizes}
