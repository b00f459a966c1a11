"""A step done again from its own result, made as noisy as before: against the loop written out."""

from __future__ import annotations

import copy
import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.errors import NotApplicable, StateError
from tests import tiny
from tests.adapters.phi_guidance.standin import StandIn, ddim, ddpm
from tests.engine.test_composition import call, picture
from tests.engine.test_composition import phi as nearness

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
WISH = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TIMES = 3


def along(x: Tensor, y: Any, t: Tensor) -> Tensor:
    return (x * WISH[: len(x)]).flatten(1).sum(1)


def predict(x: Tensor, t: Tensor) -> Tensor:
    """Rows that differ, as the halves of guidance do."""
    rows = torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None, None, None]
    return torch.sin(x) / rows + t.double().mean() / 1000


SCHEDULERS: dict[str, Any] = {
    "DDIM": lambda: ddim(5, clip_sample=False),
    "DDIM, clipped": lambda: ddim(5, clip_sample=True),
    "DDPM": lambda: ddpm((900, 600, 300, 100), clip_sample=False),
    "Euler": lambda: set_up(diffusers.EulerDiscreteScheduler()),
    "Euler ancestral": lambda: set_up(diffusers.EulerAncestralDiscreteScheduler()),
}


def set_up(scheduler: Any) -> Any:
    scheduler.set_timesteps(4)
    return scheduler


def mixed(parts: list[Tensor]) -> Tensor:
    """Classifier-free guidance of scale 3, or the one part."""
    return parts[0] if len(parts) == 1 else parts[0] + 3.0 * (parts[1] - parts[0])


def start(scheduler: Any) -> tuple[Tensor, torch.Generator]:
    return X * scheduler.init_noise_sigma, torch.Generator().manual_seed(7)


def by_hand(name: str, branches: int, times: int, scale: float = 0.05) -> Tensor:
    """Every repetition on a copy of the scheduler as it was when the step began."""
    scheduler = SCHEDULERS[name]()
    x, generator = start(scheduler)
    for index, time in enumerate(scheduler.timesteps):
        begun, x_next = scheduler, x
        for again in range(times):
            scheduler = copy.deepcopy(begun)
            scaled = scheduler.scale_model_input(x, time)
            parts = list(predict(scaled.repeat(branches, 1, 1, 1), time).chunk(branches))
            sigmas = getattr(scheduler, "sigmas", None)
            if sigmas is None:
                level = float(scheduler.alphas_cumprod[int(time)])
                last = index + 1 == len(scheduler.timesteps)
                then = 1.0 if last else float(scheduler.alphas_cumprod[int(scheduler.timesteps[index + 1])])
            else:
                level, then = (1 / (1 + float(sigma) ** 2) for sigma in sigmas[index : index + 2])
            wide = math.sqrt(1 - level)
            exact = name in ("DDPM", "DDIM, clipped")
            noise = mixed([part if exact else part - wide * scale * WISH for part in parts])
            x_next = scheduler.step(noise, time, x, generator=generator).prev_sample
            if name == "DDPM":
                share = (1 - then) / (1 - level) * (1 - level / then)
                x_next = x_next + scale * share * WISH
            elif exact:
                shift = math.sqrt(then / level) * (1 - level) - math.sqrt((1 - then) * (1 - level))
                x_next = x_next + scale * shift * WISH
            if again + 1 < times:
                drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype)
                if sigmas is None:
                    ratio = level / then
                    x = math.sqrt(ratio) * x_next + math.sqrt(1 - ratio) * drawn
                else:
                    up = float(sigmas[index]) ** 2 - float(sigmas[index + 1]) ** 2
                    x = x_next + math.sqrt(up) * drawn
        x = x_next
    return x


def attached(name: str, branches: int, times: int, scale: float = 0.05) -> Tensor:
    scheduler, net = SCHEDULERS[name](), StandIn(predict)
    x, generator = start(scheduler)
    guidance = ck.Guidance(along, scale=scale, recurrence=times)
    rows: Any = ("uncond", "cond")[2 - branches :]
    before = dict(vars(scheduler))
    with ck.attach(net, guidance, scheduler=scheduler, branches=rows) as run, torch.no_grad():
        for time in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, time).repeat(branches, 1, 1, 1)
            output = mixed(list(net(scaled, time).sample.chunk(branches)))
            x = scheduler.step(output, time, x, generator=generator).prev_sample
    assert vars(scheduler).keys() == before.keys()
    assert run.report().rows[0].counts == {"phi": times * len(scheduler.timesteps)}
    return x


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_equals_the_loop_written_out(name: str, branches: int) -> None:
    expected = by_hand(name, branches, TIMES)
    torch.testing.assert_close(attached(name, branches, TIMES), expected, rtol=1e-9, atol=1e-9)
    assert float((by_hand(name, branches, 1) - expected).abs().max()) > 1e-2


def test_without_it_nothing_is_done_twice() -> None:
    torch.testing.assert_close(attached("DDIM", 2, 1), by_hand("DDIM", 2, 1), rtol=1e-9, atol=1e-9)


WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text": ("StableDiffusionPipeline", {}, {}),
    "image": ("StableDiffusionImg2ImgPipeline", {"image": picture(9), "strength": 0.75}, {}),
    "inpaint": (
        "StableDiffusionInpaintPipeline",
        {"image": picture(9), "mask_image": torch.ones(1, 1, 64, 64), "strength": 1.0},
        {"in_channels": 9},
    ),
    "instruct": ("StableDiffusionInstructPix2PixPipeline", {"image": picture(9)}, {"in_channels": 8}),
}


@pytest.mark.parametrize("way", WAYS)
def test_pipelines_run_it_with_other_controls(way: str) -> None:
    """Two-way and three-way guidance; each repetition is one call of the U-Net with all controls."""
    cls, arguments, changes = WAYS[way]
    pipe = tiny.pipeline("sd1", cls=getattr(diffusers, cls), unet=tiny.unet("sd1", **changes))
    net = tiny.controlnet("sd1")
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    guidance = ck.Guidance(nearness, torch.full((1, 4, 8, 8), 0.5), scale=0.05, recurrence=2)
    plain = call(pipe, **arguments)
    steps = len(calls)
    calls.clear()
    with ck.attach(pipe, net.on(picture(1)), guidance) as run:
        found = call(pipe, **arguments)
    assert len(calls) == 2 * steps
    assert [row.applied for row in run.report().rows] == [2 * steps] * 2
    assert float((found - plain).abs().max()) > 1e-2
    assert torch.equal(call(pipe, **arguments), plain)


def test_steps_outside_the_window_are_done_once() -> None:
    pipe = tiny.pipeline("sd1")
    guidance = ck.Guidance(nearness, torch.zeros(1, 4, 8, 8), scale=0.05, recurrence=4, end=0.25)
    with ck.attach(pipe, guidance) as run:
        call(pipe, num_inference_steps=4)
    (row,) = run.report().rows
    assert (row.applied, row.skipped) == (4, 3)


def test_variances_learned_beside_the_noise_are_the_conditional_ones() -> None:
    def wide(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([predict(x, t), torch.cos(x)], dim=1)

    found = []
    for times in (1, 2):
        scheduler = ddpm((900, 600, 300), variance_type="learned_range", clip_sample=False)
        net, (x, generator) = StandIn(wide, wide=True), start(scheduler)
        guidance = ck.Guidance(along, scale=0.05, recurrence=times)
        with ck.attach(net, guidance, scheduler=scheduler, branches=("uncond", "cond")), torch.no_grad():
            for time in scheduler.timesteps:
                first, second = net(x.repeat(2, 1, 1, 1), time).sample.chunk(2)
                noise = mixed([first[:, :3], second[:, :3]])
                output = torch.cat([noise, second[:, 3:]], dim=1)
                x = scheduler.step(output, time, x, generator=generator).prev_sample
        found.append(x)
    assert all(bool(torch.isfinite(x).all()) for x in found)
    assert float((found[0] - found[1]).abs().max()) > 1e-2


def test_what_it_cannot_do_it_refuses() -> None:
    pipe = tiny.pipeline("sd1")
    guidance = ck.Guidance(nearness, torch.zeros(1, 4, 8, 8), scale=0.05, recurrence=2)
    for kind in ("UniPCMultistepScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"):
        other = tiny.pipeline("sd1", scheduler=getattr(diffusers, kind).from_config(pipe.scheduler.config))
        calls: list[int] = []
        other.unet.conv_in.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with pytest.raises(NotApplicable, match=kind), ck.attach(other, guidance):
            call(other)
        assert not calls
    for loop, error, says in (
        (_mixes_something_in, NotApplicable, "in another way"),
        (_never_steps, StateError, "did not call the scheduler's step"),
    ):
        scheduler, net = ddim(4, clip_sample=False), StandIn(predict)
        control = ck.Guidance(along, scale=0.05, recurrence=2)
        with (
            pytest.raises(error, match=says),
            ck.attach(net, control, scheduler=scheduler, branches=("cond",)),
        ):
            loop(net, scheduler)


@torch.no_grad()
def _mixes_something_in(net: Any, scheduler: Any) -> None:
    time = scheduler.timesteps[0]
    scheduler.step(net(X, time).sample + torch.cos(X), time, X)


@torch.no_grad()
def _never_steps(net: Any, scheduler: Any) -> None:
    for time in scheduler.timesteps:
        net(X, time)
