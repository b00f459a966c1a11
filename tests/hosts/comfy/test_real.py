"""In a real ComfyUI: our nodes register, and beside its own give the same pictures."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.comfy.server import ROOT, Failed, Server, node

EXAMPLES = sorted((ROOT / "examples" / "comfyui").glob("*.json"))
PLAIN = {"strength": 1.0, "start": 0.0, "end": 1.0, "mode": "balanced"}
PRESENT = ("", "opencv-python-headless")


def slim(*controls: tuple[str, str, dict[str, Any]], **sampler: Any) -> dict[str, Any]:
    """Two pictures of the slim model with a chain of controls: (who applies it, file, options)."""
    prompt = {
        "model": node("UNETLoader", unet_name="slim.safetensors", weight_dtype="default"),
        "p": node("TestTokens", seed=1, count=7),
        "n": node("TestTokens", seed=2, count=7),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=2),
        "embedded": node("ControlKitEmbeddedModel"),
    }
    positive, negative = ["p", 0], ["n", 0]
    for i, (who, file, options) in enumerate(controls):
        prompt[f"map{i}"] = node("TestPicture", seed=10 + i, size=64)
        both = {
            "positive": positive,
            "negative": negative,
            "control_net": [f"net{i}", 0],
            "image": [f"map{i}", 0],
        }
        if who == "stock":
            prompt[f"net{i}"] = node("ControlNetLoader", control_net_name=file)
        else:
            prompt[f"net{i}"] = node("ControlKitLoad", file=file, config="num_heads: 8")
        if who == "ours":
            prompt[f"on{i}"] = node("ControlKitApply", **both, **{**PLAIN, **options})
        else:
            stock = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **options}
            prompt[f"on{i}"] = node("ControlNetApplyAdvanced", **both, **stock)
        positive, negative = [f"on{i}", 0], [f"on{i}", 1]
    settings = {
        "seed": 0,
        "steps": 3,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    settings |= {"model": ["model", 0], **sampler}
    both = {"positive": positive, "negative": negative, "latent_image": ["empty", 0]}
    prompt["k"] = node("KSampler", **both, **settings)
    prompt["latents"] = node("SaveLatent", samples=["k", 0], filename_prefix="test")
    prompt["pixels"] = node("VAEDecode", samples=["k", 0], vae=["embedded", 2])
    prompt["saved"] = node("SaveImage", images=["pixels", 0], filename_prefix="test")
    if controls:
        prompt["report"] = node("ControlKitReport", samples=["k", 0], positive=positive)
    return prompt


def made(comfy: Server, prompt: dict[str, Any]) -> tuple[Tensor, np.ndarray]:
    outputs = comfy.run(prompt)
    return comfy.latents(outputs, "latents"), comfy.pictures(outputs, "saved")


def assert_same(one: tuple[Tensor, np.ndarray], other: tuple[Tensor, np.ndarray]) -> None:
    assert torch.equal(one[0], other[0]), f"latents differ by {float((one[0] - other[0]).abs().max()):.1e}"
    assert np.array_equal(one[1], other[1])


def test_every_node_registers_where_there_is_no_diffusers(comfy: Server) -> None:
    code = "import importlib.util as u; print([n for n in ('diffusers', 'accelerate') if u.find_spec(n)])"
    command = [os.environ["CONTROLKIT_COMFYUI_PYTHON"], "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert "IMPORT FAILED" not in comfy.log
    assert "Cannot import" not in comfy.log
    nodes = [name for name in comfy.get("/object_info") if name.startswith("ControlKit")]
    assert len([name for name in nodes if name.startswith("ControlKitDetect")]) == len(ck.detectors())
    for name in ("Load", "Apply", "ApplyUni", "Guide", "GuideClass", "Report", "EmbeddedModel"):
        assert f"ControlKit{name}" in nodes


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_gives_its_picture(comfy: Server, path: Path) -> None:
    prompt = json.loads(path.read_text())
    outputs = comfy.run(prompt)
    saved = [name for name, entry in prompt.items() if entry["class_type"] == "SaveImage"]
    for name in saved:
        (picture,) = comfy.pictures(outputs, name)
        assert picture.shape == (128, 128, 3)
        assert picture.std() > 5, "something is on it"
    for name, entry in prompt.items():
        if entry["class_type"] == "ControlKitReport":
            rows = json.loads(outputs[name]["rows"][0])
            assert rows
            assert all(row["applied"] for row in rows)


def test_every_detector_that_needs_nothing_gives_its_map(comfy: Server) -> None:
    from controlkit.hosts.comfy.detectors import node_name

    needless = [info for info in ck.detectors() if not info.needs_weights and info.extra in PRESENT]
    assert len(needless) >= 10
    prompt = {"scene": node("ControlKitEmbeddedScene", seed=5)}
    scene = ck.embedded.scene(5)
    masks = {info.name: "mask" in [option.name for option in info.options] for info in needless}
    for name, masked in masks.items():
        prompt[name] = node(node_name(name), image=["scene", 0], **({"mask": ["scene", 4]} if masked else {}))
    outputs = comfy.run(prompt)
    for info in needless:
        options: Any = {"mask": (scene.instances > 0).astype(np.float32)} if masks[info.name] else {}
        expected = np.asarray(ck.preprocess(scene.image, info.name, **options), dtype=int)
        assert np.abs(comfy.pictures(outputs, info.name)[0] - expected).max() <= 1, info.name


@pytest.mark.parametrize("who", ["ours", "ours in stock's apply"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_one_file_gives_the_same_pixels_as_the_stock_nodes(comfy: Server, who: str, sampler: str) -> None:
    without = made(comfy, slim(sampler_name=sampler))
    stock = made(comfy, slim(("stock", "slim_a.safetensors", {}), sampler_name=sampler))
    ours = made(comfy, slim((who, "slim_a.safetensors", {}), sampler_name=sampler))
    assert_same(stock, ours)
    assert np.abs(without[1] - stock[1]).max() > 20, "the control is seen"


def test_a_control_lora_is_completed_from_the_unet_in_force(comfy: Server) -> None:
    stock = made(comfy, slim(("stock", "slim_lora.safetensors", {})))
    assert_same(stock, made(comfy, slim(("ours", "slim_lora.safetensors", {}))))
    assert np.abs(made(comfy, slim())[1] - stock[1]).max() > 20, "the control is seen"


def test_the_stock_nodes_window_is_comfyuis(comfy: Server) -> None:
    window = {"strength": 0.6, "start_percent": 0.3, "end_percent": 0.7}
    stock = made(comfy, slim(("stock", "slim_a.safetensors", window), steps=6))
    assert_same(stock, made(comfy, slim(("ours in stock's apply", "slim_a.safetensors", window), steps=6)))


@pytest.mark.parametrize(
    "order", [("ours", "stock", "ours"), ("ours", "ours", "stock"), ("stock", "ours", "ours")]
)
def test_two_of_ours_chained_with_a_stock_one_are_the_sum(comfy: Server, order: tuple[str, ...]) -> None:
    chain = (("slim_a.safetensors", 1.0), ("slim_b.safetensors", 0.6), ("slim_a.safetensors", 0.4))
    stock = made(comfy, slim(*(("stock", file, {"strength": scale}) for file, scale in chain)))
    controls = [(who, file, {"strength": scale}) for who, (file, scale) in zip(order, chain, strict=True)]
    assert_same(stock, made(comfy, slim(*controls)))


@pytest.mark.parametrize("what", ["areas", "from a picture", "two maps"])
def test_other_ways_of_sampling_agree_too(comfy: Server, what: str) -> None:
    def prompt(who: str) -> dict[str, Any]:
        made = slim((who, "slim_a.safetensors", {}), steps=4)
        if what == "areas":  # of a map that looks the same at every size
            made["map0"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0)
            made["empty"]["inputs"]["width"] = 128
            made["p2"] = node("TestTokens", seed=3, count=7)
            made["on0"]["inputs"]["positive"] = ["both", 0]
            made["area"] = node(
                "ConditioningSetArea", conditioning=["p2", 0], width=64, height=64, x=32, y=0, strength=1.0
            )
            made["both"] = node("ConditioningCombine", conditioning_1=["p", 0], conditioning_2=["area", 0])
        elif what == "from a picture":
            made["photo"] = node("TestPicture", seed=20, size=64)
            made["encoded"] = node("VAEEncode", pixels=["photo", 0], vae=["embedded", 2])
            made["k"]["inputs"] |= {"latent_image": ["encoded", 0], "denoise": 0.6}
        else:
            made["one"] = node("TestPicture", seed=21, size=64)
            made["map0"] = node("ImageBatch", image1=["one", 0], image2=["two", 0])
            made["two"] = node("TestPicture", seed=22, size=64)
        return made

    assert_same(made(comfy, prompt("stock")), made(comfy, prompt("ours")))


def test_a_control_that_fails_leaves_the_next_picture_as_it_was(comfy: Server) -> None:
    comfy.forget()
    before = made(comfy, slim(seed=7))
    prompt = slim(("ours", "slim_a.safetensors", {}), seed=7)
    prompt["net0"] = node("ControlKitEmbeddedControl", name="controlnet-canny")
    with pytest.raises(Failed, match=r"BaseMismatch: .*made for this base model"):
        comfy.run(prompt)
    comfy.forget()
    after = made(comfy, slim(seed=7))
    assert np.array_equal(before[0].numpy(), after[0].numpy())
    assert np.array_equal(before[1], after[1])


def test_guidance_through_the_unet_with_a_stock_control_in_force(comfy: Server) -> None:
    def guided(through: bool) -> dict[str, Any]:
        prompt = slim(("stock", "slim_a.safetensors", {}), model=["guide", 0])
        prompt["guide"] = node(
            "ControlKitGuide",
            model=["model", 0],
            vae=["embedded", 2],
            function="color",
            color="blue",
            strength=0.5,
            start=0.0,
            end=1.0,
            max_norm=0.0,
            normalize=True,
            through_unet=through,
        )
        prompt["report"]["inputs"]["model"] = ["guide", 0]
        return prompt

    plain = made(comfy, slim(("stock", "slim_a.safetensors", {})))
    fixed, through = made(comfy, guided(False)), made(comfy, guided(True))
    for one, other in ((plain, fixed), (plain, through), (fixed, through)):
        assert float((one[0] - other[0]).abs().max()) > 1e-3 * float(one[0].abs().max())
