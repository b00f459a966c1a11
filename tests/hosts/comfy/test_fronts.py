"""The same controls on the same weights, noise and schedule: in ComfyUI and from Python, the same latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.comfy.networks import uni
from tests.hosts.comfy.server import Server, node

STEPS, SCALE = 8, 2.0
SCENE = ck.embedded.scene(12)
CLOSE = 1e-4
WINDOW = {"start": 0.0, "end": 1.0}
CANNY = ("ControlKitEmbeddedControl", {"name": "controlnet-canny"})
DEPTH = ("ControlKitEmbeddedControl", {"name": "t2i-depth"})


def applied(net: str, output: int, before: str | None, **options: Any) -> dict[str, Any]:
    positive, negative = (["p", 0], ["n", 0]) if before is None else ([before, 0], [before, 1])
    both = {"positive": positive, "negative": negative, "control_net": [net, 0], "image": ["scene", output]}
    return node("ControlKitApply", **both, **{"strength": 1.0, "mode": "balanced", **WINDOW, **options})


@dataclass(frozen=True)
class Front:
    """One stack of controls, from Python and as nodes."""

    controls: Callable[[], list[Any]]
    nodes: dict[str, dict[str, Any]]
    last: str = ""
    model: str = "e"
    kinds: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)


def region() -> Tensor:
    return torch.from_numpy(SCENE.instances > 0).float()


def guide(through: bool, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"function": "color", "color": "#2060c0", "strength": 8.0, **WINDOW}
    settings |= {"model": ["e", 0], "vae": ["e", 2], "max_norm": 0.0, "normalize": False}
    return node("ControlKitGuide", **{**settings, "through_unet": through, **options})


def blue(through: bool) -> ck.Guidance:
    return ck.Guidance(ck.guidance.color(), "#2060c0", scale=8.0, through_unet=through)


FRONTS = {
    "nothing": Front(list, {}),
    "canny": Front(
        lambda: [ck.embedded.load("controlnet-canny").on(SCENE.canny)],
        {"a": applied("canny", 1, None)},
        "a",
    ),
    "two, with mask, curve and modes": Front(
        lambda: [
            ck.embedded.load("controlnet-canny").on(
                SCENE.canny, scale=[(0.0, 1.0), (0.8, 0.4)], end=0.8, mask=region(), mode="control"
            ),
            ck.embedded.load("t2i-depth").on(SCENE.depth, scale=0.7, mode="prompt"),
        ],
        {
            "a": applied(
                "canny", 1, None, end=0.8, curve="0: 1, 0.8: 0.4", mask=["scene", 4], mode="control"
            ),
            "b": applied("depth", 2, "a", strength=0.7, mode="prompt"),
        },
        "b",
    ),
    "detector": Front(
        lambda: [
            ck.embedded.load("controlnet-canny").on(
                SCENE.image, detect="canny", block_scales=[1, 1, 0.5, 1, 0]
            )
        ],
        {"a": applied("canny", 0, None, detector="canny", block_scales="1, 1, 0.5, 1, 0")},
        "a",
    ),
    "guidance": Front(lambda: [blue(False)], {"g": guide(False)}, model="g"),
    "guidance through the U-Net, with a control": Front(
        lambda: [ck.embedded.load("controlnet-canny").on(SCENE.canny), blue(True)],
        {"a": applied("canny", 1, None), "g": guide(True)},
        "a",
        "g",
    ),
    "edges, then a region": Front(
        lambda: [
            ck.Guidance(ck.guidance.edges(), SCENE.canny, scale=0.05, end=0.75),
            ck.Guidance(ck.guidance.region(region()), SCENE.image, scale=0.5),
        ],
        {
            "edges": guide(False, function="edges", target=["scene", 1], strength=0.05, end=0.75),
            "g": guide(
                False,
                model=["edges", 0],
                function="region",
                target=["scene", 0],
                mask=["scene", 4],
                strength=0.5,
            ),
        },
        model="g",
    ),
    "Uni-ControlNet, both halves": Front(
        lambda: [
            uni().on(
                {"canny": SCENE.canny, "midas": SCENE.depth},
                content=torch.randn(1, 128, generator=torch.Generator().manual_seed(4)),
                local_scale=0.9,
                global_scale=0.7,
            )
        ],
        {
            "uni": node("ControlKitLoad", file="uni/diffusion_pytorch_model.safetensors"),
            "content": node("TestContent", seed=4, width=128),
            "a": node(
                "ControlKitApplyUni",
                positive=["p", 0],
                negative=["n", 0],
                control_net=["uni", 0],
                content=["content", 0],
                canny=["scene", 1],
                midas=["scene", 2],
                local_strength=0.9,
                global_strength=0.7,
                mode="balanced",
                **WINDOW,
            ),
        },
        "a",
    ),
    "class": Front(
        lambda: [ck.embedded.load("classifier").on(3, scale=10.0)],
        {
            "g": node(
                "ControlKitGuideClass",
                model=["e", 0],
                classifier=["classes", 0],
                wanted=3,
                strength=10.0,
                **{**WINDOW, "max_norm": 0.0},
            )
        },
        model="g",
    ),
}


def from_python(controls: list[Any]) -> tuple[Tensor, list[int]]:
    """The final latents, and the timesteps."""
    pipe = ck.embedded.pipeline()
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    with ck.attach(pipe, *controls):
        latents: Any = pipe(SCENE.caption, latents=noise, **options).images
    return latents, [int(t) for t in pipe.scheduler.timesteps]


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return from_python([])[0]


@pytest.mark.parametrize("name", FRONTS)
def test_comfyui_and_python_give_the_same_latents(comfy: Server, plain: Tensor, name: str) -> None:
    front = FRONTS[name]
    expected, steps = from_python(front.controls())
    close = CLOSE * max(1.0, float(expected.abs().max()))
    assert name == "nothing" or float((expected - plain).abs().max()) > 50 * close, "the controls are seen"
    timesteps = ", ".join(map(str, steps))
    positive, negative = ([front.last, 0], [front.last, 1]) if front.last else (["p", 0], ["n", 0])
    outputs = comfy.run(
        {
            "e": node("ControlKitEmbeddedModel"),
            "scene": node("ControlKitEmbeddedScene", seed=12),
            "canny": node(CANNY[0], **CANNY[1]),
            "depth": node(DEPTH[0], **DEPTH[1]),
            "classes": node("ControlKitEmbeddedControl", name="classifier"),
            "p": node("CLIPTextEncode", clip=["e", 1], text=["scene", 5]),
            "n": node("CLIPTextEncode", clip=["e", 1], text=""),
            "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
            "levels": node("TestLevels", model=["e", 0], timesteps=timesteps),
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
        }
    )
    found = comfy.latents(outputs, "latents")
    assert float((found - expected).abs().max()) <= close
