"""Is the formula right everywhere? Guidance on a mixture of Gaussians, where the answer is known exactly.

A stand-in for the U-Net returns the exact noise prediction of p(x), φ is the exact ln p(y | x_t); guided at
scale 1 that must be what sampling with the exact noise prediction of p(x | y) gives. Schedulers that compute
in float32 (Euler and Heun lift to it themselves) are compared in float32, all others in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.adapters.phi_guidance.mixture import POSTERIOR, PRIOR, Mixture, log_likelihood
from tests.adapters.phi_guidance.standin import StandIn, ddpm, diffusers

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDIM, trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M, Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC, Karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "PNDM": ("PNDMScheduler", {}),
}
NO_SAMPLE = ("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
NO_SAMPLE += ("KDPM2DiscreteScheduler", "PNDMScheduler")
"""Those that refuse ``prediction_type="sample"`` themselves."""
CASES = [
    (name, prediction)
    for name, (kind, _) in SCHEDULERS.items()
    for prediction in ("epsilon", "v_prediction", "sample")
    if not (prediction == "sample" and kind in NO_SAMPLE)
]
STEPS = 12


def scheduler_of(name: str, prediction: str) -> Any:
    kind, settings = SCHEDULERS[name]
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = getattr(diffusers, kind)(prediction_type=prediction, **schedule, **settings)
    scheduler.set_timesteps(STEPS)
    return scheduler


def noise_level(scheduler: Any, time: Tensor, unscaled: Tensor, scaled: Tensor) -> float:
    """ᾱ of what the network is given, told from what the scheduler itself does to a unit sample.

    Schedulers that scale divide by sqrt(sigma² + 1), which gives ᾱ without a look at their tables; the rest
    convert predictions at the sigma of their step, or at the entry of their table.
    """
    ratio = float((scaled * unscaled).sum() / (unscaled * unscaled).sum())
    if abs(ratio - 1) > 1e-9:
        return ratio**2
    if getattr(scheduler, "sigmas", None) is None:
        return float(scheduler.alphas_cumprod[int(time)])
    index = scheduler.step_index if scheduler.step_index is not None else 0
    return float(scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index].double())[0] ** 2)


class Exact:
    """The exact prediction of a mixture, of whatever kind the scheduler wants."""

    def __init__(self, mixture: Mixture, prediction: str) -> None:
        self.mixture, self.prediction, self.alpha_bar = mixture, prediction, 0.5

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = self.alpha_bar**0.5, (1 - self.alpha_bar) ** 0.5
        noise = self.mixture.noise(x.double(), self.alpha_bar)
        if self.prediction == "epsilon":
            return noise.to(x.dtype)
        if self.prediction == "sample":
            return ((x - s * noise) / a).to(x.dtype)
        return (noise / a - s / a * x).to(x.dtype)


def sample(name: str, prediction: str, mixture: Mixture, *, guided: bool, rows: int = 16) -> Tensor:
    scheduler = scheduler_of(name, prediction)
    exact = Exact(mixture, prediction)
    net = StandIn(exact)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, 1, 1, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
    accepts = type(scheduler).step.__code__.co_varnames
    options = {"generator": generator} if "generator" in accepts else {}
    phi = ck.Guidance(lambda x, y, t: log_likelihood(x.double(), exact.alpha_bar))
    with ck.attach(net, *[phi] * guided, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        for time in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, time)
            exact.alpha_bar = noise_level(scheduler, time, x, scaled)
            x = scheduler.step(net(scaled, time).sample, time, x, **options).prev_sample
    return x


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_guided_sampling_is_sampling_of_what_is_asked_for(name: str, prediction: str) -> None:
    wanted = sample(name, prediction, POSTERIOR, guided=False)
    found = sample(name, prediction, PRIOR, guided=True)
    plain = sample(name, prediction, PRIOR, guided=False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert float((plain - wanted).abs().max()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ancestral_samples_have_the_means_and_deviations_of_what_is_asked_for(prediction: str) -> None:
    """20,000 samples in 1,000 steps of DDPM with the mean shift; chance alone gives about 0.7 %."""
    scheduler = ddpm(range(999, -1, -1), prediction_type=prediction, clip_sample=False)
    exact = Exact(PRIOR, prediction)
    net, generator = StandIn(exact), torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, 1, 1, generator=generator, dtype=torch.float64)
    phi = ck.Guidance(lambda x, y, t: log_likelihood(x.double(), exact.alpha_bar))
    with ck.attach(net, phi, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        for time in scheduler.timesteps:
            exact.alpha_bar = float(scheduler.alphas_cumprod[time])
            x = scheduler.step(net(x, time).sample, time, x, generator=generator).prev_sample
    mean, deviation = POSTERIOR.moments()
    plain, _ = PRIOR.moments()
    found = x.flatten(1)
    # Of a mean, 2 % of the picture's own spread: a mean may be near 0.
    torch.testing.assert_close(found.mean(0) / deviation, mean / deviation, rtol=0, atol=0.02)
    torch.testing.assert_close(found.std(0), deviation, rtol=0.02, atol=0)
    assert float(((plain - mean) / deviation).abs().max()) > 0.5


@pytest.mark.parametrize("sees", ["noisy", "clean"])
def test_the_gradient_agrees_with_finite_differences(sees: Any) -> None:
    """In float64, the prediction held fixed: what the prediction is shifted by, against φ itself."""
    scheduler = scheduler_of("DDIM", "epsilon")
    time = scheduler.timesteps[4]
    level = float(scheduler.alphas_cumprod[int(time)])
    a, s = level**0.5, (1 - level) ** 0.5
    x = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = PRIOR.noise(x, level)
    dtypes: list[torch.dtype] = []

    def phi(seen: Tensor, y: Any, t: Tensor) -> Tensor:
        dtypes.append(seen.dtype)
        return log_likelihood(seen, level)

    def value(at: Tensor) -> Tensor:
        return log_likelihood(at if sees == "noisy" else (at - s * noise) / a, level)

    net = StandIn(lambda *_: noise)
    with ck.attach(net, ck.Guidance(phi, sees=sees), scheduler=scheduler, branches=("cond",)):
        found = (net(x, time).sample - noise) / -s
    assert dtypes == [torch.float64]
    for channel in range(3):
        nudge = torch.zeros_like(x)
        nudge[:, channel] = 1e-5
        slope = (value(x + nudge) - value(x - nudge)) / 2e-5
        torch.testing.assert_close(found[:, channel, 0, 0], slope, rtol=1e-6, atol=1e-8)
