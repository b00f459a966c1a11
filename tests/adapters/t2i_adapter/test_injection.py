"""The original's U-Net with adapters, and its sampling loop, against `ck.attach` on the same weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.contracts import Control
from tests.golden_cases import Case, assert_equal, load_case, names

UNETS = names("t2i_adapter", "unet_injection")
XL_UNETS = names("t2i_adapter", "xl_unet_injection")
LOOPS = names("t2i_adapter", "ddim_loop")


def part(case: Case, prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in case.part(prefix).items()}


def unet_of(case: Case) -> Any:
    """diffusers' U-Net with the case's weights, from all of the case's."""
    return ck.unet(case.weights, config=case.config["unet"])


def style_of(case: Case) -> Any:
    return ck.load(part(case, "adapter_style."), config={"num_head": case.config["style"]["num_head"]})


@pytest.mark.parametrize("name", UNETS)
def test_features_and_tokens_go_where_the_original_puts_them(name: str) -> None:
    case = load_case(name)
    unet, weights, inputs = unet_of(case), case.config["weights"], case.inputs
    adapter: Any = ck.load(case.part("adapter."))
    light: Any = ck.load(part(case, "adapter_color."))
    assert light.config.adapter_type == "light_adapter"
    spatial = adapter.on(inputs["hint"], scale=weights["hint"])
    color = light.on(inputs["hint_color"], scale=weights["color"])
    style = style_of(case).on(inputs["clip_hidden"], scale=weights["style"])
    runs: dict[str, tuple[Control, ...]] = {
        "plain": (),
        "adapter": (adapter.on(inputs["hint"]),),
        "weighted": (spatial,),
        "two_spatial": (spatial, color),
        "style_only": (style,),
        "all": (spatial, color, style),
    }
    for key, controls in runs.items():
        with torch.no_grad(), ck.attach(unet, *controls):
            found = unet(inputs["x"], inputs["t"], inputs["context"]).sample
        assert_equal(found, case.outputs[f"eps_{key}"])


@pytest.mark.parametrize("name", XL_UNETS)
def test_sdxl_features_go_where_the_original_puts_them(name: str) -> None:
    """After the first level with its downsampler, inside the others before theirs, and after the middle.

    diffusers' U-Net adds ``down_intrablock_additional_residuals`` at these very places for SDXL's blocks.
    """
    case = load_case(name)
    unet: Any = ck.unet(part(case, "unet."), config=case.config["unet"])
    adapter: Any = ck.load(case.part("adapter."))
    assert adapter.config.adapter_type == "full_adapter_xl"
    inputs = case.inputs
    added = {"text_embeds": inputs["text_embeds"], "time_ids": inputs["time_ids"]}
    runs: dict[str, tuple[Control, ...]] = {
        "plain": (),
        "adapter": (adapter.on(inputs["hint"]),),
        "weighted": (adapter.on(inputs["hint"], scale=case.config["weight"]),),
        "first_three_only": (adapter.on(inputs["hint"], block_scales=[1, 1, 1, 0]),),
    }
    for key, controls in runs.items():
        with torch.no_grad(), ck.attach(unet, *controls):
            found = unet(inputs["x"], inputs["t"], inputs["context"], added_cond_kwargs=added).sample
        assert_equal(found, case.outputs[f"eps_{key}"])


def end_of(tau: float, steps: int) -> float:
    """The end of a window in which as many first steps act as with the original's ``cond_tau``.

    The original acts in ``steps - int((1 - tau) * steps)`` steps, diffusers' window in those that end by
    ``tau``: with 5 steps and 0.5 these are 3 and 2, so the end is given as 3/5.
    """
    return (steps - int((1 - tau) * steps)) / steps


@pytest.mark.parametrize("name", LOOPS)
def test_the_whole_sampling_loop_is_the_original_s(name: str) -> None:
    """Adapter and style tokens are not weighted in this case, whatever its ``weights`` say."""
    case = load_case(name)
    unet, inputs, config = unet_of(case), case.inputs, case.config
    steps, guidance = config["steps"], config["cfg_scale"]
    adapter: Any = ck.load(case.part("adapter."))
    style = style_of(case)
    spatial_end = end_of(config["cond_tau"], steps)
    style_end = end_of(config["style_cond_tau"], steps)

    def loop(guidance: float, *controls: Control) -> list[Tensor]:
        scheduler = import_module("diffusers").DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == case.outputs["timesteps"].tolist()
        context = inputs["context"]
        if guidance != 1:
            context = torch.cat([inputs["uncond_context"], context])
        x, seen = inputs["x_T"], []
        with torch.no_grad(), ck.attach(unet, *controls, scheduler=scheduler):
            for t in scheduler.timesteps:
                noise = unet(x.repeat(len(context), 1, 1, 1), t, context).sample
                if guidance != 1:
                    uncond, cond = noise.chunk(2)
                    noise = uncond + guidance * (cond - uncond)
                x = scheduler.step(noise, t, x).prev_sample
                seen.append(x)
        return seen

    spatial = adapter.on(inputs["hint"], end=spatial_end)
    runs = {
        "spatial": loop(guidance, spatial),
        "style": loop(guidance, style.on(inputs["clip_hidden"], end=style_end)),
        "both": loop(guidance, spatial, style.on(inputs["clip_hidden"])),
        "nocfg": loop(1, adapter.on(inputs["hint"]), style.on(inputs["clip_hidden"])),
    }
    for key, found in runs.items():
        for step, x in enumerate(found):
            assert_equal(x, case.outputs[f"{key}_x_{step:02d}"], 1e-4)
