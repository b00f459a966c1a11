"""The original ControlNet's numbers: its residuals, its noise, its whole sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.controlnet import ControlNet
from tests import tiny
from tests.golden_cases import Case, assert_equal, load_case, names

CASES = [name for name in names("controlnet") if not name.endswith("ddim_loop")]
WHOLE = [name for name in CASES if "ControlledUnetModel" in str(load_case(name).info["classes"])]
LOOPS = names("controlnet", "ddim_loop")


def loaded(case: Case) -> ControlNet:
    module = ck.load(case.weights, config=case.config)
    assert isinstance(module, ControlNet)
    assert module.notes == ()
    return module


def test_the_kept_case_is_there() -> None:
    assert "controlnet/ctrl_wide" in CASES


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_residuals_are_the_originals(name: str) -> None:
    case = load_case(name)
    given = case.inputs
    found = loaded(case)(given["x"], given["t"], given["context"], given["hint"])
    expected = [case.outputs[key] for key in sorted(case.outputs) if key.startswith("control_")]
    for ours, theirs in zip((*found.skips, found.mid), expected, strict=True):
        assert ours is not None
        assert_equal(ours, theirs)


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_noise_of_the_controlled_unet_is_the_originals(name: str) -> None:
    case = load_case(name)
    unet, net, given, count = (
        ck.unet(case.weights, case.config),
        loaded(case),
        case.inputs,
        case.config["n_controls"],
    )
    ways: dict[str, dict[str, Any]] = {
        "eps": {},
        "eps_strength": {"scale": case.config["strength"]},
        "eps_guess": {"block_scales": given["guess_scales"].tolist()},
        "eps_only_mid": {"block_scales": [0.0] * (count - 1) + [1.0]},
    }
    for output, options in ways.items():
        with ck.attach(unet, net.on(given["hint"], **options)):
            found = unet(given["x"], given["t"], given["context"]).sample
        assert_equal(found, case.outputs[output])
    assert_equal(unet(given["x"], given["t"], given["context"]).sample, case.outputs["eps_no_control"])


def sampled(
    case: Case, *, scales: list[float], guess: bool, eta: float = 0.0
) -> tuple[list[Tensor], list[Tensor]]:
    """The original's sampling loop: every state and every prediction of the clean latents."""
    unet, net, given, config = ck.unet(case.weights, case.config), loaded(case), case.inputs, case.config
    scheduler = tiny.scheduler(timestep_spacing="leading")
    scheduler.set_timesteps(config["steps"])
    assert torch.equal(scheduler.timesteps, case.outputs["timesteps"])
    control = net.on(given["hint"], block_scales=scales)
    x, states, clean = given["x_T"], [], []
    for index, t in enumerate(scheduler.timesteps):
        if guess:
            uncond = unet(x, t, given["uncond_context"]).sample
            with ck.attach(unet, control):
                cond = unet(x, t, given["context"]).sample
        else:
            both = torch.cat([given["uncond_context"], given["context"]])
            with ck.attach(unet, control):
                uncond, cond = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        noise = uncond + config["cfg_scale"] * (cond - uncond)
        step = scheduler.step(noise, t, x, eta=eta, variance_noise=given["noise"][index] if eta else None)
        x = step.prev_sample
        states.append(x)
        clean.append(step.pred_original_sample)
    return states, clean


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("way", ["cfg", "guess", "eta1"])
@torch.no_grad()
def test_whole_sampling_is_the_originals(name: str, way: str) -> None:
    case = load_case(name)
    config, count = case.config, case.config["n_controls"]
    scales = {
        "cfg": [float(config["strength"])] * count,
        "guess": [config["guess_strength"] * 0.825 ** (count - 1 - index) for index in range(count)],
        "eta1": [1.0] * count,
    }
    states, clean = sampled(case, scales=scales[way], guess=way == "guess", eta=float(way == "eta1"))
    for kind, found in (("x", states), ("x0", clean)):
        for index, ours in enumerate(found):
            assert_equal(ours, case.outputs[f"{way}_{kind}_{index:02d}"], 1e-4)
