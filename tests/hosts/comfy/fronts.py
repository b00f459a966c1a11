"""One stack of controls from Python and as ComfyUI's nodes, on the embedded model with the same noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.comfy.server import Server, node

STEPS, SCALE = 8, 2.0
SCENE = ck.embedded.scene(12)
CLOSE = 1e-4
"""Largest difference of latents, relative to the largest of them where that is above 1."""
WINDOW = {"start": 0.0, "end": 1.0}


@dataclass(frozen=True)
class Front:
    """One stack of controls.

    Args:
        controls: From Python.
        nodes: The same as nodes; ``p`` and ``n`` are the prompts, ``e`` the embedded model, ``scene`` its
            scene, ``canny``, ``depth`` and ``classes`` its controls.
        last: The node that gives the conditioning; empty for the prompts.
        model: The node that gives the MODEL.
    """

    controls: Callable[[], list[Any]]
    nodes: dict[str, dict[str, Any]]
    last: str = ""
    model: str = "e"


def from_python(controls: list[Any]) -> tuple[Tensor, list[int]]:
    """The final latents, and the timesteps."""
    pipe = ck.embedded.pipeline()
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    with ck.attach(pipe, *controls):
        latents: Any = pipe(SCENE.caption, latents=noise, **options).images
    return latents, [int(t) for t in pipe.scheduler.timesteps]


def from_comfy(comfy: Server, front: Front, steps: list[int], **more: Any) -> tuple[Tensor, dict[str, Any]]:
    """The final latents, and what the nodes put out; ``more`` are further nodes."""
    positive, negative = ([front.last, 0], [front.last, 1]) if front.last else (["p", 0], ["n", 0])
    outputs = comfy.run(
        {
            "e": node("ControlKitEmbeddedModel"),
            "scene": node("ControlKitEmbeddedScene", seed=12),
            "canny": node("ControlKitEmbeddedControl", name="controlnet-canny"),
            "depth": node("ControlKitEmbeddedControl", name="t2i-depth"),
            "classes": node("ControlKitEmbeddedControl", name="classifier"),
            "p": node("CLIPTextEncode", clip=["e", 1], text=["scene", 5]),
            "n": node("CLIPTextEncode", clip=["e", 1], text=""),
            "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
            "levels": node("TestLevels", model=["e", 0], timesteps=", ".join(map(str, steps))),
            "euler": node("KSamplerSelect", sampler_name="euler"),
            **front.nodes,
            "k": node(
                "SamplerCustom",
                model=[front.model, 0],
                add_noise=True,
                noise_seed=5,
                cfg=SCALE,
                positive=positive,
                negative=negative,
                sampler=["euler", 0],
                sigmas=["levels", 0],
                latent_image=["empty", 0],
            ),
            "latents": node("SaveLatent", samples=["k", 0], filename_prefix="front"),
            **more,
        }
    )
    return comfy.latents(outputs, "latents"), outputs


def applied(net: str, output: int, before: str | None, **options: Any) -> dict[str, Any]:
    """The node that applies a control to a map of the scene, after another."""
    positive, negative = (["p", 0], ["n", 0]) if before is None else ([before, 0], [before, 1])
    both = {"positive": positive, "negative": negative, "control_net": [net, 0], "image": ["scene", output]}
    return node("ControlKitApply", **both, **{"strength": 1.0, "mode": "balanced", **WINDOW, **options})


def guide(through: bool, **options: Any) -> dict[str, Any]:
    """The node that guides towards blue."""
    settings: dict[str, Any] = {"function": "color", "color": "#2060c0", "strength": 8.0, **WINDOW}
    settings |= {"model": ["e", 0], "vae": ["e", 2], "max_norm": 0.0, "normalize": False}
    return node("ControlKitGuide", **{**settings, "through_unet": through, **options})


def blue(through: bool) -> ck.Guidance:
    """The same from Python."""
    return ck.Guidance(ck.guidance.color(), "#2060c0", scale=8.0, through_unet=through)
