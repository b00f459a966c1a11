"""Guided sampling as guided-diffusion and SDG do it, through diffusers' schedulers and `controlkit.Guidance`.

These cases are not kept with the project; they run where CONTROLKIT_GOLDEN names their folder.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import controlkit as ck
from controlkit.adapters.noisy_clip.control import style_likeness
from controlkit.hosts.stepping import factors
from tests import golden_cases
from tests.adapters.phi_guidance.standin import StandIn, ddim, ddpm, noise_of

GUIDED, UPDATES = "classifier_guidance/guided_loops", "diffusion_math/updates"
SDG = "classifier_guidance/sdg"
RUNS = ("p", "p_noclip", "p_unguided", "ddim", "ddim_noclip", "ddim_eta", "ddim_unguided")


def case_of(name: str) -> golden_cases.Case:
    if name not in golden_cases.names(name.split("/")[0]):
        pytest.skip("needs CONTROLKIT_GOLDEN")
    return golden_cases.load_case(name)


def part(case: golden_cases.Case, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in case.part(prefix).items()}


def step(scheduler: Any, output: Tensor, time: Tensor, x: Tensor, noise: Tensor, eta: float) -> Any:
    """One step as the original's, which takes the noise from the clipped picture in DDIM too."""
    if hasattr(scheduler, "final_alpha_cumprod"):
        drawn = noise if eta else None
        options: Any = {"eta": eta, "use_clipped_model_output": True, "variance_noise": drawn}
        return scheduler.step(output[:, :3], time, x, **options)
    with noise_of(noise):
        return scheduler.step(output, time, x)


def scheduler_of(run: str, case: golden_cases.Case) -> tuple[Any, float]:
    clip = "noclip" not in run
    times = case.outputs[f"{run}_model_t"].tolist()
    if run.startswith("ddim"):
        scheduler = ddim(len(times), clip_sample=clip)
        assert scheduler.timesteps.tolist() == times
        return scheduler, case.config["eta"] if "eta" in run else 0.0
    return ddpm(times, clip_sample=clip, variance_type="learned_range"), 0.0


@pytest.mark.parametrize("run", RUNS)
def test_each_guided_step_is_that_of_the_original(run: str) -> None:
    """From the recorded outputs of network and classifier alone, each step from where the original was."""
    case = case_of(GUIDED)
    scheduler, eta = scheduler_of(run, case)
    outputs, samples = case.outputs[f"{run}_model_output"], case.outputs[f"{run}_sample"]
    gradients = case.outputs.get(f"{run}_cond_grad")
    now = 0
    unet = StandIn(lambda x, t: outputs[now], wide=True)
    controls = []
    if gradients is not None:
        controls = [ck.Guidance(lambda x, y, t: (x * gradients[now]).flatten(1).sum(1))]
    with ck.attach(unet, *controls, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        for now, time in enumerate(scheduler.timesteps):
            x = samples[now - 1] if now else case.inputs["x_T"]
            done = step(scheduler, unet(x, time).sample, time, x, case.inputs["noise"][now], eta)
            golden_cases.assert_equal(done.prev_sample, samples[now])
            # At t = 999 it is a difference of numbers near 500, known to 3e-5 in float32, cut to [-1, 1].
            clean = case.outputs[f"{run}_pred_xstart"][now]
            golden_cases.assert_equal(done.pred_original_sample, clean, 1e-5 if time < 999 else 1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_whole_guided_loops_are_those_of_the_original(run: str) -> None:
    case = case_of(GUIDED)
    scheduler, eta = scheduler_of(run, case)
    labels = case.inputs["y"]
    network: Any = ck.unet(part(case, "unet."), case.config["unet"])
    classifier: Any = ck.load(part(case, "classifier."), config=case.config["classifier"])
    unet = StandIn(lambda x, t: network(x, t, labels), wide=True)
    guided = "unguided" not in run
    controls = [classifier.on(labels, scale=case.config["classifier_scale"])] if guided else []
    x = case.inputs["x_T"]
    with ck.attach(unet, *controls, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        for index, time in enumerate(scheduler.timesteps):
            x = step(scheduler, unet(x, time).sample, time, x, case.inputs["noise"][index], eta).prev_sample
            golden_cases.assert_equal(x, case.outputs[f"{run}_sample"][index], 1e-4)


@pytest.mark.parametrize("run", ["text", "image", "both", "style"])
def test_semantic_diffusion_guidance_is_that_of_the_original(run: str) -> None:
    """The loop as a whole up to its last step, and that from where the original was.

    The last step takes a difference of numbers near 120, so that what rounding left at its beginning comes
    out 30 times larger: xh-liu/SDG_code@62fb2725 itself, run on a processor without AVX-512, is up to 1.3e-4
    from its own record there. Run on that processor too, this loop is within 5.3e-5 of the original's in all
    four runs, and each single step within 3.5e-7; from the record the last step is within 2e-7.
    """
    case = case_of(SDG)
    weights, settings = part(case, "encoder."), case.config["runs"][run]
    scheduler = ddpm(case.outputs["timesteps"].tolist(), clip_sample=True, variance_type="learned_range")
    text = weights["text.weight"][case.inputs["tokens"]].mean(1)
    index = 0

    def encode(x: Tensor, t: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for layer, stride in enumerate((1, 2, 2, 2, 1)):
            kernel, bias = weights[f"convs.{layer}.weight"], weights[f"convs.{layer}.bias"]
            time = weights[f"time.{layer}"].T * t[:, None] / 1000
            x = torch.tanh(F.conv2d(x, kernel, bias, stride, 1)) * (1 + time[:, :, None, None])
            features.append(x)
        return [*features, x.mean((2, 3)) @ weights["proj.weight"].T]

    def phi(x: Tensor, y: Any, t: Tensor) -> Tensor:
        found, total = encode(x, t), x.new_zeros(len(x))
        if settings["text_weight"]:
            total = total + settings["text_weight"] * F.cosine_similarity(found[-1], text)
        if settings["image_weight"]:
            noise = case.inputs["ref_noise"][index]
            goal = encode(scheduler.add_noise(case.inputs["ref_img"], noise, t.long()), t)
            near = (
                F.cosine_similarity(found[-1], goal[-1])
                if settings["image_loss"] == "semantic"
                else style_likeness(found[:-1], goal[:-1]) / len(x)
            )
            total = total + settings["image_weight"] * near
        return total

    network: Any = ck.unet(part(case, "unet."), case.config["unet"])
    unet = StandIn(network, wide=True)
    x, last = case.inputs["x_T"], len(scheduler.timesteps) - 1
    control = ck.Guidance(phi)
    with ck.attach(unet, control, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        for index, time in enumerate(scheduler.timesteps):
            with noise_of(case.inputs["step_noise"][index]):
                x = scheduler.step(unet(x, time).sample, time, x).prev_sample
            expected = case.outputs[f"{run}_sample"][index]
            golden_cases.assert_equal(x, expected, 1e-4)
            if index == last - 1:
                x = expected


VARIANTS = {
    "learned_range": {"variance_type": "learned_range"},
    "fixed_large": {"variance_type": "fixed_large"},
    "fixed_small_ddim": {"variance_type": "fixed_small"},
    "xstart": {"variance_type": "learned_range", "prediction_type": "sample"},
}


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_guided_steps_with_every_variance_are_mean_plus_variance_times_gradient(
    variant: str, clip: str
) -> None:
    """The original's recorded means and variances, with a gradient of our own."""
    case = case_of(UPDATES)
    times = case.outputs[f"{variant}/timestep_map"].tolist()[::-1]
    outputs, noise = case.outputs[f"{variant}/model_output"], case.inputs["step_noise"]
    wish = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    wide = outputs.shape[1] == 6
    for row, index in enumerate(case.inputs["index"].tolist()):
        scheduler = ddpm(times, clip_sample=clip == "clip", **VARIANTS[variant])
        time = times[len(times) - 1 - index]
        found = case.outputs[f"{variant}/{clip}/log_variance"][row : row + 1].exp()
        if variant == "fixed_small_ddim" and index == 0:
            found = torch.zeros_like(found)  # the original clips the logarithm alone, for its losses
        x, drawn, direction = case.inputs["x_t"][row : row + 1], noise[row : row + 1], wish[row : row + 1]
        output = outputs[row : row + 1]
        unet = StandIn(lambda x, t, output=output: output, wide=wide)
        plain = case.outputs[f"{variant}/{clip}/p_sample"][row : row + 1]
        control = ck.Guidance(lambda x, y, t, direction=direction: (x * direction).flatten(1).sum(1))
        with (
            ck.attach(unet, control, scheduler=scheduler, branches=("cond",)),
            noise_of(drawn),
            torch.no_grad(),
        ):
            guided = scheduler.step(unet(x, time).sample, time, x).prev_sample
        golden_cases.assert_equal(guided, plain + found * direction)
        share, _ = factors(scheduler, {"timestep": time, "model_output": output, "sample": x})
        torch.testing.assert_close(
            torch.as_tensor(share).float().expand(found.shape), found, rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_plain_ddim_steps_are_those_of_the_original(clip: str, eta: int) -> None:
    case = case_of(UPDATES)
    outputs, noise = case.outputs["fixed_small_ddim/model_output"], case.inputs["step_noise"]
    for row, index in enumerate(case.inputs["index"].tolist()):
        scheduler = ddim(10, clip_sample=clip == "clip")
        time = scheduler.timesteps[9 - index]
        x, drawn = case.inputs["x_t"][row : row + 1], noise[row : row + 1]
        done = step(scheduler, outputs[row : row + 1], time, x, drawn, float(eta))
        expected = case.outputs[f"fixed_small_ddim/{clip}/ddim_eta{eta}"][row : row + 1]
        golden_cases.assert_equal(done.prev_sample, expected)
