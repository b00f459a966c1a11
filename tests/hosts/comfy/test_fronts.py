"""The same controls on the same weights, noise and schedule: in ComfyUI and from Python, the same latents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.comfy.fronts import (
    CLOSE,
    SCENE,
    WINDOW,
    Front,
    applied,
    blue,
    from_comfy,
    from_python,
    guide,
)
from tests.hosts.comfy.networks import uni
from tests.hosts.comfy.server import Server, node


def region() -> Tensor:
    return torch.from_numpy(SCENE.instances > 0).float()


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


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return from_python([])[0]


@pytest.mark.parametrize("name", FRONTS)
def test_comfyui_and_python_give_the_same_latents(comfy: Server, plain: Tensor, name: str) -> None:
    front = FRONTS[name]
    expected, steps = from_python(front.controls())
    assert name == "nothing" or float((expected - plain).abs().max()) > 50 * CLOSE, "the controls are seen"
    found, _ = from_comfy(comfy, front, steps)
    assert float((found - expected).abs().max()) <= CLOSE
