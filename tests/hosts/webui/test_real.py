"""AUTOMATIC1111's web UI for real: its pictures with our units, and the same through the Python API.

What is compared are latents, as its sampler returned them and as a loop of our own computes them from the
same noise and the same prompts with `controlkit.attach`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.webui.loops import loop
from tests.hosts.webui.server import Failed, Server, sent

MAP = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
PHOTO = np.kron(np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
HALF = np.zeros((64, 64, 3), np.uint8)
HALF[:, 32:] = 255
A, B, ADAPTER = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("net-a", "net-b", "adapter"))
OVERFLOW = "overflow/diffusion_pytorch_model.safetensors"
CLOSE = 1e-4


def unit(model: str = A, image: Any = MAP, **more: Any) -> dict[str, Any]:
    masks = {"mask": sent(more.pop("mask"))} if "mask" in more else {}
    return {"model": model, "image": sent(image), **masks, **more}


def module(webui: Server, model: str) -> Any:
    folder, _, file = model.partition("/")
    return ck.load(webui.base / "models" / "ControlNet" / folder, weight_name=file)


CASES: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "nothing": ([], lambda w: []),
    "one": ([unit()], lambda w: [module(w, A).on(MAP)]),
    "adapter": ([unit(ADAPTER)], lambda w: [module(w, ADAPTER).on(MAP)]),
    "two": (
        [unit(weight=0.7), unit(B, PHOTO)],
        lambda w: [module(w, A).on(MAP, scale=0.7), module(w, B).on(PHOTO)],
    ),
    "of both kinds": (
        [unit(), unit(ADAPTER, PHOTO, weight=0.5)],
        lambda w: [module(w, A).on(MAP), module(w, ADAPTER).on(PHOTO, scale=0.5)],
    ),
    "window": ([unit(start=0.25, end=0.75)], lambda w: [module(w, A).on(MAP, start=0.25, end=0.75)]),
    "prompt mode": ([unit(mode="prompt")], lambda w: [module(w, A).on(MAP, mode="prompt")]),
    "control mode": ([unit(control_mode=2)], lambda w: [module(w, A).on(MAP, mode="control")]),
    "mask": ([unit(mask=HALF)], lambda w: [module(w, A).on(MAP, mask=HALF[..., 0] / 255.0)]),
    "detector": (
        [unit(A, PHOTO, detector="canny", options="low_threshold: 60, high_threshold: 140")],
        lambda w: [
            module(w, A).on(
                PHOTO, detect="canny", detect_options={"low_threshold": 60, "high_threshold": 140}
            )
        ],
    ),
    "resize": (
        [unit(A, MAP[:40], resize_mode="Crop and Resize")],
        lambda w: [module(w, A).on(MAP[:40], resize="crop")],
    ),
}


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_our_unit_and_the_python_api_give_the_same_latents(webui: Server, name: str) -> None:
    units, controls = CASES[name]
    made = webui.make(*units)
    assert apart(made.latents, loop(webui, made, *controls(webui))) < CLOSE
    if units:
        assert apart(made.latents, webui.make().latents) > 0.05, "it acts"
    assert webui.get("/controlkit-probe/hooks") == {"forward": 0}


def guided(**more: Any) -> dict[str, Any]:
    return {"function": "color", "color": "blue", "strength": 0.5, "normalize": True, **more}


@pytest.mark.parametrize("more", [{}, {"start": 0.5}, {"through_unet": True}])
def test_guidance_is_that_of_the_python_api(webui: Server, more: dict[str, Any]) -> None:
    made = webui.make(unit(), guided(**more))
    phi = ck.Guidance(ck.guidance.color(), "blue", scale=0.5, normalize=True, **more)
    assert apart(made.latents, loop(webui, made, module(webui, A).on(MAP), phi)) < CLOSE
    assert apart(made.latents, webui.make(unit()).latents) > 0.05


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M", "Heun", "Euler a", "UniPC"])
def test_every_sampler_can_be_guided(webui: Server, sampler: str) -> None:
    plain, made = (webui.make(*units, sampler_name=sampler) for units in ([], [guided(strength=8.0)]))
    blue = [picture.pixels[..., 2].mean() - picture.pixels[..., 0].mean() for picture in (plain, made)]
    assert blue[1] > blue[0] + 0.5


def test_a_picture_without_units_is_the_one_without_the_extension(webui: Server) -> None:
    assert torch.equal(webui.make().latents, webui.bare.latents)
    assert torch.equal(webui.make(unit(enabled=False)).latents, webui.bare.latents)


@pytest.mark.parametrize(
    ("units", "fails", "told"),
    [
        ([unit(OVERFLOW)], 0, "NaN or infinity"),
        ([unit(), unit(OVERFLOW, start=0.5)], 0, "at step 3 of 4"),
        ([unit(), guided()], 2, "the probe made this U-Net fail"),
        ([unit("not there")], 0, "net-a/diffusion_pytorch_model.safetensors"),
        ([unit(wieght=1)], 0, "wieght"),
        ([unit(start=0.8, end=0.2)], 0, "start"),
        ([{"model": A}], 0, "a picture"),
        ([{"model": A, "image": "https://example.org/x.png"}], 0, "Nothing is fetched"),
    ],
)
def test_a_failure_is_told_and_the_next_picture_is_one_without_the_extension(
    webui: Server, units: list[dict[str, Any]], fails: int, told: str
) -> None:
    with pytest.raises(Failed, match=told):
        webui.make(*units, fails=fails)
    if not fails:
        assert webui.get("/controlkit-probe/hooks") == {"forward": 0}, "nothing is left, even before the next"
    made = webui.make()
    assert torch.equal(made.latents, webui.bare.latents)
    assert np.array_equal(made.pixels, webui.bare.pixels)
    assert webui.get("/controlkit-probe/hooks") == {"forward": 0}


HIRES: dict[str, Any] = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
IMG2IMG: dict[str, Any] = {"mode": "img2img", "init_images": [sent(PHOTO)], "denoising_strength": 0.75}


@pytest.mark.parametrize(
    ("units", "given", "told"),
    [
        ([unit(), unit(OVERFLOW, passes="hires")], HIRES, "NaN or infinity"),
        ([unit(), guided()], {**HIRES, "fails": 6}, "the probe made this U-Net fail"),
        ([unit(), guided()], {"n_iter": 2, "fails": 6}, "the probe made this U-Net fail"),
        ([unit(OVERFLOW)], {"batch_size": 2}, "NaN or infinity"),
        ([unit(OVERFLOW)], IMG2IMG, "NaN or infinity"),
        ([unit(), guided(function="edges")], {}, "a picture for edges"),
        ([unit(), guided(through_unet=True)], {"fails": 3}, "the probe made this U-Net fail"),
        ([unit(OVERFLOW)], {"override_settings": {"batch_cond_uncond": False}}, "NaN or infinity"),
    ],
)
def test_a_failure_in_a_later_pass_leaves_nothing_either(
    webui: Server, units: list[dict[str, Any]], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(Failed, match=told):
        webui.make(*units, **given)
    webui.post("/sdapi/v1/options", {"batch_cond_uncond": True})  # the web UI keeps it
    made = webui.make()
    assert torch.equal(made.latents, webui.bare.latents)
    assert np.array_equal(made.pixels, webui.bare.pixels)
    assert webui.get("/controlkit-probe/hooks") == {"forward": 0}


def test_a_picture_that_is_interrupted_leaves_nothing(webui: Server) -> None:
    with ThreadPoolExecutor(1) as other:
        running = other.submit(webui.make, unit(), guided(through_unet=True), steps=150)
        while not webui.get("/sdapi/v1/progress")["state"]["sampling_step"]:
            time.sleep(0.2)
        webui.post("/sdapi/v1/interrupt", {})
        made = running.result()
    assert 0 < len(made.all("sigma")) < 150
    assert torch.equal(webui.make().latents, webui.bare.latents)
    assert webui.get("/controlkit-probe/hooks") == {"forward": 0}


@pytest.mark.parametrize("units", [[unit(weight=0)], [unit("overflow", weight=0)], [guided(strength=0)]])
def test_at_weight_0_nothing_runs(webui: Server, units: list[dict[str, Any]]) -> None:
    assert torch.equal(webui.make(*units).latents, webui.bare.latents)


def test_outside_its_window_nothing_runs(webui: Server) -> None:
    """The overflowing network would fail if it ran."""
    late = unit(OVERFLOW, start=0.8)
    assert torch.equal(webui.make(late).latents, webui.bare.latents)


def test_halves_that_are_run_apart_get_the_same(webui: Server) -> None:
    together = webui.make(unit(control_mode=2), guided())
    halves = webui.make(unit(control_mode=2), guided(), override_settings={"batch_cond_uncond": False})
    webui.post("/sdapi/v1/options", {"batch_cond_uncond": True})  # the web UI keeps it
    longer = webui.make(unit(), guided(), prompt="a house " * 90)
    assert apart(together.latents, halves.latents) < CLOSE
    assert longer.all("cond")[0].shape[1] != longer.all("uncond")[0].shape[1]


def test_prompts_joined_by_and(webui: Server) -> None:
    parts = "a house AND a tree"
    made, plain = webui.make(unit(), guided(), prompt=parts), webui.make(prompt=parts)
    assert made.all("cond")[0].shape[0] == 2
    assert apart(made.latents, plain.latents) > 0.05
    with pytest.raises(Failed, match="joined by AND"):
        webui.make(unit(), prompt=parts, batch_size=2)


def test_a_batch_is_its_pictures(webui: Server) -> None:
    both = webui.make(unit(), guided(), batch_size=2)
    alone = [webui.make(unit(), guided(), seed=seed) for seed in (3, 4)]
    assert both.latents.shape[0] == 2
    for row, one in zip(both.latents, alone, strict=True):
        assert apart(row[None], one.latents) < CLOSE
    again = webui.make(unit(), guided(), n_iter=2)
    assert apart(again.all("samples")[1], alone[1].latents) < CLOSE


def test_hires_fix_per_unit(webui: Server) -> None:
    plain, both, first, hires = (
        webui.make(*units, **HIRES)
        for units in ([], [unit()], [unit(hr_option="Low res only")], [unit(passes="hires")])
    )
    noise = [picture.all("x")[1] for picture in (plain, both, first, hires)]
    assert all(torch.equal(one, noise[0]) for one in noise), "the second pass has its own noise"
    changes = [apart(picture.latents, plain.latents) for picture in (both, first, hires)]
    assert min(changes) > 0.05
    assert len({round(change, 4) for change in changes}) == 3


def test_img2img_takes_its_own_picture(webui: Server) -> None:
    given = {**IMG2IMG, "steps": 8}
    lacking, named = (webui.make(u, **given) for u in ({"model": A}, unit(A, PHOTO)))
    assert torch.equal(lacking.latents, named.latents)
    assert apart(lacking.latents, webui.make(**given).latents) > 0.05


def test_fields_one_after_the_other_are_the_panels(webui: Server) -> None:
    fields = [True, A, sent(MAP), "None", "", 0.7, 0.0, 1.0, "balanced", "stretch", None, "both"]
    made = webui.make(*fields)
    assert torch.equal(made.latents, webui.make(unit(weight=0.7)).latents)
    scripts = webui.get("/sdapi/v1/script-info")
    ours = [script for script in scripts if script["name"] == "controlkit"]
    assert [len(script["args"]) for script in ours] == [3 * 17 + 11] * 2, "on both tabs"


def test_the_units_are_in_the_pictures_parameters(webui: Server) -> None:
    made = webui.make(unit(weight=0.7, end=0.5), unit(B, detector="canny"), guided())
    assert f'ControlKit 0: "model={A}; weight=0.7; end=0.5"'.replace('"', "") in made.infotext.replace(
        '"', ""
    )
    assert f"ControlKit 1: model={B}; detector=canny" in made.infotext.replace('"', "")
    assert "ControlKit guidance: function=color; color=blue; strength=0.5; normalize=True" in made.infotext


def test_nothing_is_reported_as_broken(webui: Server) -> None:
    broken = [line for line in webui.log.splitlines() if "Error" in line and "controlkit" in line.lower()]
    assert [line for line in broken if "API error" not in line and "controlkit.errors" not in line] == []
