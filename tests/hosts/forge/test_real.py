"""Forge for real: its pictures with our units, and the same through the Python API.

What is compared are latents, as its sampler returned them and as a loop of our own computes them from the
same noise and the same prompts with `controlkit.attach`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.forge.networks import slim_pipeline
from tests.hosts.forge.server import Server
from tests.hosts.webui.server import Failed, Picture, sent
from tests.hosts.webui.test_real import ADAPTER, CASES, MAP, PHOTO, A, B, apart, guided, module, unit

CLOSE = 1e-4
CLEAN = {"forward": 0}
"""What the probe tells of Forge's model when nothing is on it."""


def loop(forge: Server, made: Picture, *controls: Any, cfg: float = 2.0) -> Tensor:
    """Euler's method with classifier-free guidance, from what the probe wrote of a picture."""
    from diffusers import EulerDiscreteScheduler

    pipeline: Any = slim_pipeline(forge.base)
    unet = pipeline.unet
    levels = [float(level[0]) for level in made.all("sigma")]
    schedule = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    schedule.set_timesteps(len(levels))
    tokens = torch.cat([made.all("cond")[0], made.all("uncond")[0]])
    x = made.all("x")[0] * levels[0]
    options: Any = {"scheduler": schedule, "branches": ("cond", "uncond")}
    with torch.no_grad(), ck.attach(pipeline, *controls, **options) if controls else torch.no_grad():
        for place, (level, after) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True)):
            time = schedule.timesteps[place]
            rows = torch.cat([x, x]) / (level**2 + 1) ** 0.5
            cond, uncond = unet(rows, time, tokens, return_dict=False)[0].chunk(2)
            x = x + (uncond + cfg * (cond - uncond)) * (after - level)
    return x


@pytest.mark.parametrize("name", CASES)
def test_our_unit_and_the_python_api_give_the_same_latents(forge: Server, name: str) -> None:
    units, controls = CASES[name]
    made = forge.make(*units)
    difference = apart(made.latents, loop(forge, made, *controls(forge)))
    assert difference < CLOSE
    if units:
        assert apart(made.latents, forge.make().latents) > 0.05, "it acts"
    assert forge.get("/controlkit-probe/hooks") == CLEAN


@pytest.mark.parametrize("more", [{}, {"start": 0.5}, {"through_unet": True}])
@pytest.mark.parametrize("model", [A, ADAPTER])
def test_guidance_is_that_of_the_python_api(forge: Server, model: str, more: dict[str, Any]) -> None:
    made = forge.make(unit(model), guided(**more))
    phi = ck.Guidance(ck.guidance.color(), "blue", scale=0.5, normalize=True, **more)
    difference = apart(made.latents, loop(forge, made, module(forge, model).on(MAP), phi))
    assert difference < CLOSE
    assert apart(made.latents, forge.make(unit(model)).latents) > 0.05


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M", "Heun", "Euler a", "UniPC"])
def test_every_sampler_can_be_guided(forge: Server, sampler: str) -> None:
    plain, made = (forge.make(*units, sampler_name=sampler) for units in ([], [guided(strength=8.0)]))
    blue = [picture.pixels[..., 2].mean() - picture.pixels[..., 0].mean() for picture in (plain, made)]
    assert blue[1] > blue[0] + 0.5


def test_a_picture_without_units_is_the_one_without_the_extension(forge: Server) -> None:
    assert torch.equal(forge.make().latents, forge.bare.latents)
    assert torch.equal(forge.make(unit(enabled=False)).latents, forge.bare.latents)


@pytest.mark.parametrize(
    ("units", "fails", "told"),
    [
        ([unit("overflow/diffusion_pytorch_model.safetensors")], 0, "NaN or infinity"),
        ([unit(), unit("overflow/diffusion_pytorch_model.safetensors", start=0.5)], 0, "at step 3 of 4"),
        ([unit(), guided()], 2, "the probe made this U-Net fail"),
        ([unit("not there")], 0, "net-a/diffusion_pytorch_model.safetensors"),
        ([unit(wieght=1)], 0, "wieght"),
        ([unit(start=0.8, end=0.2)], 0, "start"),
        ([{"model": A}], 0, "a picture"),
        ([{"model": A, "image": "https://example.org/x.png"}], 0, "Nothing is fetched"),
        ([guided(through_unet=True)], 0, "AND"),
    ],
)
def test_a_failure_is_told_and_the_next_picture_is_one_without_the_extension(
    forge: Server, units: list[dict[str, Any]], fails: int, told: str
) -> None:
    with pytest.raises(Failed, match=told):
        forge.make(*units, fails=fails, **({"prompt": "a house AND a tree"} if told == "AND" else {}))
    if not fails:
        assert forge.get("/controlkit-probe/hooks") == CLEAN, "nothing is left, even before the next"
    made = forge.make()
    assert torch.equal(made.latents, forge.bare.latents)
    assert np.array_equal(made.pixels, forge.bare.pixels)
    assert forge.get("/controlkit-probe/hooks") == CLEAN


@pytest.mark.parametrize("units", [[unit(weight=0)], [unit("overflow", weight=0)], [guided(strength=0)]])
def test_at_weight_0_nothing_runs(forge: Server, units: list[dict[str, Any]]) -> None:
    assert torch.equal(forge.make(*units).latents, forge.bare.latents)


def test_outside_its_window_nothing_runs(forge: Server) -> None:
    """The overflowing network would fail if it ran."""
    late = unit("overflow/diffusion_pytorch_model.safetensors", start=0.8)
    assert torch.equal(forge.make(late).latents, forge.bare.latents)


def test_halves_of_different_length_are_run_apart_and_get_the_same(forge: Server) -> None:
    """Forge repeats the shorter prompt up to four times its length; beyond that it runs the halves apart."""
    made = forge.make(unit(control_mode=2), guided(), prompt="a house " * 200)
    assert made.all("cond")[0].shape[1] > 4 * made.all("uncond")[0].shape[1]
    plain = forge.make(prompt="a house " * 200)
    assert apart(made.latents, plain.latents) > 0.05


def test_prompts_joined_by_and(forge: Server) -> None:
    parts = "a house AND a tree"
    made, plain = forge.make(unit(), guided(), prompt=parts), forge.make(prompt=parts)
    assert made.all("cond")[0].shape[0] == 2
    assert apart(made.latents, plain.latents) > 0.05
    both = forge.make(unit(), guided(), prompt=parts, batch_size=2)
    assert apart(both.latents[:1], made.latents) < CLOSE


def test_a_batch_is_its_pictures(forge: Server) -> None:
    both = forge.make(unit(), guided(), batch_size=2)
    alone = [forge.make(unit(), guided(), seed=seed) for seed in (3, 4)]
    assert both.latents.shape[0] == 2
    for row, one in zip(both.latents, alone, strict=True):
        assert apart(row[None], one.latents) < CLOSE
    again = forge.make(unit(), guided(), n_iter=2)
    assert apart(again.all("samples")[1], alone[1].latents) < CLOSE


def test_hires_fix_per_unit(forge: Server) -> None:
    given = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    given |= {"hr_cfg": 2.0, "hr_additional_modules": ["Use same choices"]}
    plain, both, first, hires = (
        forge.make(*units, **given)
        for units in ([], [unit()], [unit(hr_option="Low res only")], [unit(passes="hires")])
    )
    noise = [picture.all("x")[1] for picture in (plain, both, first, hires)]
    assert all(torch.equal(one, noise[0]) for one in noise), "the second pass has its own noise"
    changes = [apart(picture.latents, plain.latents) for picture in (both, first, hires)]
    assert min(changes) > 0.05
    assert len({round(change, 4) for change in changes}) == 3
    assert forge.get("/controlkit-probe/hooks") == CLEAN


def test_img2img_takes_its_own_picture(forge: Server) -> None:
    given = {"mode": "img2img", "init_images": [sent(PHOTO)], "denoising_strength": 0.75, "steps": 8}
    lacking, named = (forge.make(u, **given) for u in ({"model": A}, unit(A, PHOTO)))
    assert torch.equal(lacking.latents, named.latents)
    assert apart(lacking.latents, forge.make(**given).latents) > 0.05


def test_the_units_are_in_the_pictures_parameters(forge: Server) -> None:
    made = forge.make(unit(weight=0.7, end=0.5), unit(B, detector="canny"), guided())
    told = made.infotext.replace('"', "")
    assert f"ControlKit 0: model={A}; weight=0.7; end=0.5" in told
    assert f"ControlKit 1: model={B}; detector=canny" in told
    assert "ControlKit guidance: function=color; color=blue; strength=0.5; normalize=True" in told


def test_nothing_is_reported_as_broken(forge: Server) -> None:
    broken = [line for line in forge.log.splitlines() if "Error" in line and "controlkit" in line.lower()]
    assert [line for line in broken if "API error" not in line and "controlkit.errors" not in line] == []
