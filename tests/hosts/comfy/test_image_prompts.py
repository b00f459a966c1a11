"""Pictures as prompts in a real ComfyUI: IP-Adapter, style tokens and CoAdapter, as from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.hosts.comfy.networks import VISION, fuser, image_prompt, style
from tests.hosts.comfy.server import Failed, Server, node

WEIGHTS = "diffusion_pytorch_model.safetensors"


def said(seed: int, part: str, pictures: int = 1) -> Tensor:
    """What the node TestContent says."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(pictures, VISION, generator=generator)
    tokens = torch.randn(pictures, 5, VISION, generator=generator)
    return {"vector": vector, "last": tokens, "penultimate": tokens.flip(1)}[part]


def loaded(file: str) -> dict[str, Any]:
    return node("ControlKitLoad", file=f"{file}/{WEIGHTS}", config="")


def content(seed: int, pictures: int = 1) -> dict[str, Any]:
    return node("TestContent", seed=seed, width=VISION, pictures=pictures)


def ip(net: str, seen: str, model: str = "e", **options: Any) -> dict[str, Any]:
    settings = {"strength": 1.0, **WINDOW, "mode": "balanced", "batch": "all for every picture", **options}
    return node(
        "ControlKitApplyIPAdapter", model=[model, 0], ip_adapter=[net, 0], content=[seen, 0], **settings
    )


def styled(seen: str, model: str = "e", **options: Any) -> dict[str, Any]:
    settings = {"strength": 1.0, **WINDOW, **options}
    return node(
        "ControlKitApplyStyle", model=[model, 0], style_adapter=["style", 0], content=[seen, 0], **settings
    )


def solids() -> Tensor:
    return torch.from_numpy(SCENE.instances > 0).float()


STYLE = {"style": loaded("style_models/style"), "seen": content(3)}
IP = {"ip": loaded("ip"), "seen": content(4)}
FRONTS = {
    "IP-Adapter": Front(
        lambda: [image_prompt(plus=False).on(said(4, "vector"), scale=0.8)],
        {**IP, "m": ip("ip", "seen", strength=0.8)},
        model="m",
    ),
    "IP-Adapter of two pictures, with a mask, a curve, a window and block scales": Front(
        lambda: [
            image_prompt(plus=False).on(
                said(4, "vector", 2)[None],
                scale=[(0.0, 1.5), (0.7, 0.5)],
                end=0.7,
                mode="control",
                mask=solids(),
                block_scales=[1, 0.5, 1, 0, 2],
            )
        ],
        {
            "ip": loaded("ip"),
            "seen": content(4, pictures=2),
            "m": ip(
                "ip",
                "seen",
                curve="0: 1.5, 0.7: 0.5",
                end=0.7,
                mode="control",
                mask=["scene", 4],
                block_scales="1, 0.5, 1, 0, 2",
            ),
        },
        model="m",
    ),
    "IP-Adapter plus": Front(
        lambda: [image_prompt(plus=True).on(said(5, "penultimate"))],
        {"ip": loaded("ip_plus"), "seen": content(5), "m": ip("ip", "seen")},
        model="m",
    ),
    "style tokens in a window": Front(
        lambda: [style().on(said(3, "last"), scale=1.5, end=0.6)],
        {**STYLE, "m": styled("seen", strength=1.5, end=0.6)},
        model="m",
    ),
    "two IP-Adapters, style tokens, a ControlNet and a T2I-Adapter": Front(
        lambda: [
            image_prompt(plus=False).on(said(4, "vector"), scale=0.6),
            style().on(said(3, "last")),
            image_prompt(plus=True).on(said(5, "penultimate"), scale=0.5, start=0.25),
            style().on(said(6, "last"), scale=0.7),
            ck.embedded.load("controlnet-canny").on(SCENE.canny, scale=0.7),
            ck.embedded.load("t2i-depth").on(SCENE.depth, mode="control"),
        ],
        {
            **STYLE,
            "ip": loaded("ip"),
            "plus": loaded("ip_plus"),
            "seen4": content(4),
            "seen5": content(5),
            "seen6": content(6),
            "m1": ip("ip", "seen4", strength=0.6),
            "m2": styled("seen", "m1"),
            "m3": ip("plus", "seen5", "m2", strength=0.5, start=0.25),
            "m4": styled("seen6", "m3", strength=0.7),
            "a": applied("canny", 1, None, strength=0.7),
            "b": applied("depth", 2, "a", mode="control"),
        },
        "b",
        "m4",
    ),
    "CoAdapter of two maps and a style": Front(
        lambda: [
            fuser().on(
                {
                    "depth": ck.embedded.load("t2i-depth").on(SCENE.depth, scale=0.8),
                    "canny": ck.embedded.load("t2i-depth").on(SCENE.image, detect="canny", end=0.5),
                    "style": style().on(said(3, "last"), scale=0.9, start=0.2),
                },
                scale=0.7,
            ),
            ck.embedded.load("controlnet-canny").on(SCENE.canny),
        ],
        {
            **STYLE,
            "fuser": loaded("fuser"),
            "one": node(
                "ControlKitCoAdapterMember",
                adapter=["depth", 0],
                condition="depth",
                strength=0.8,
                **WINDOW,
                image=["scene", 2],
            ),
            "two": node(
                "ControlKitCoAdapterMember",
                adapter=["depth", 0],
                condition="canny",
                strength=1.0,
                **{**WINDOW, "end": 0.5},
                image=["scene", 0],
                detector="canny",
                members=["one", 0],
            ),
            "three": node(
                "ControlKitCoAdapterMember",
                adapter=["style", 0],
                condition="style",
                strength=0.9,
                **{**WINDOW, "start": 0.2},
                content=["seen", 0],
                members=["two", 0],
            ),
            "m": node(
                "ControlKitApplyCoAdapter",
                model=["e", 0],
                fuser=["fuser", 0],
                members=["three", 0],
                strength=0.7,
                **WINDOW,
            ),
            "a": applied("canny", 1, None),
        },
        "a",
        "m",
    ),
    "guidance through a U-Net with an IP-Adapter, style tokens and a T2I-Adapter": Front(
        lambda: [
            image_prompt(plus=False).on(said(4, "vector"), scale=0.8, mask=solids()),
            style().on(said(3, "last")),
            ck.embedded.load("t2i-depth").on(SCENE.depth),
            blue(True),
        ],
        {
            **STYLE,
            "ip": loaded("ip"),
            "seen4": content(4),
            "m1": ip("ip", "seen4", strength=0.8, mask=["scene", 4]),
            "m2": styled("seen", "m1"),
            "m": guide(True, model=["m2", 0]),
            "a": applied("depth", 2, None),
        },
        "a",
        "m",
    ),
}


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return from_python([])[0]


@pytest.mark.parametrize("name", FRONTS)
def test_comfyui_and_python_give_the_same_latents(comfy: Server, plain: Tensor, name: str) -> None:
    front = FRONTS[name]
    expected, steps = from_python(front.controls())
    assert float((expected - plain).abs().max()) > 50 * CLOSE, "the controls are seen"
    report = node(
        "ControlKitReport", samples=["k", 0], positive=[front.last or "p", 0], model=[front.model, 0]
    )
    found, outputs = from_comfy(comfy, front, steps, report=report)
    assert float((found - expected).abs().max()) <= CLOSE
    rows = json.loads(outputs["report"]["rows"][0])
    assert len(rows) == len(front.controls()), "each has its row"
    assert all(row["applied"] and row["steps"] == len(steps) for row in rows)
    unfused = [row for row in rows if "style" not in row["control"]]
    assert all(row["norm"] for row in unfused)


def test_without_them_the_next_picture_is_as_before(comfy: Server, plain: Tensor) -> None:
    _, steps = from_python([])
    nothing = Front(list, {})
    before, _ = from_comfy(comfy, nothing, steps)
    from_comfy(comfy, FRONTS["two IP-Adapters, style tokens, a ControlNet and a T2I-Adapter"], steps)
    comfy.forget()
    after, _ = from_comfy(comfy, nothing, steps)
    assert torch.equal(before, after)


def test_one_that_does_not_fit_the_model_is_refused_by_its_node(comfy: Server) -> None:
    prompt = {
        "model": node("UNETLoader", unet_name="slim.safetensors", weight_dtype="default"),
        **IP,
        "m": ip("ip", "seen", "model"),
        "p": node("TestTokens", seed=1, count=7),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    }
    sampler = {
        "seed": 0,
        "steps": 2,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    ends = {"positive": ["p", 0], "negative": ["p", 0], "latent_image": ["empty", 0]}
    prompt["k"] = node("KSampler", model=["m", 0], **ends, **sampler)
    prompt["latents"] = node("SaveLatent", samples=["k", 0], filename_prefix="test")
    with pytest.raises(Failed, match=r"BaseMismatch: .*an IP-Adapter for other"):
        comfy.run(prompt)


@pytest.mark.parametrize("plus", [False, True])
def test_comfyuis_image_encoder_gives_what_ours_gives(comfy: Server, tmp_path: Path, plus: bool) -> None:
    """The picture, and for plus the blank one, go through ComfyUI's encoder and through transformers'."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"image_size": 28, "patch_size": 7, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"hidden_size": VISION, "intermediate_size": 64, "projection_dim": VISION, "num_channels": 3}
    torch.manual_seed(2)
    encoder: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, hidden_act="quick_gelu")).eval()
    encoder.half().float()  # ComfyUI holds image encoders in half precision, also on CPUs
    encoder.save_pretrained(tmp_path)
    config = tmp_path / "comfy.json"
    config.write_text(json.dumps({**sizes, "hidden_act": "quick_gelu", "model_type": "clip_vision_model"}))
    photo = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    from PIL import Image

    Image.fromarray(photo).save(comfy.base / "input" / "photo.png")
    front = Front(
        lambda: [image_prompt(plus=plus).on(photo, encoder=encoder)],
        {
            "ip": loaded("ip_plus" if plus else "ip"),
            "photo": node("LoadImage", image="photo.png"),
            "eyes": node("TestVision", config=str(config), weights=str(tmp_path / "model.safetensors")),
            "seen": node("CLIPVisionEncode", clip_vision=["eyes", 0], image=["photo", 0], crop="center"),
            "m": ip("ip", "seen", clip_vision=["eyes", 0]),
        },
        model="m",
    )
    expected, steps = from_python(front.controls())
    found, _ = from_comfy(comfy, front, steps)
    assert float((found - expected).abs().max()) <= CLOSE
