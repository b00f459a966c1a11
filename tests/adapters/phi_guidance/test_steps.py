"""Guidance after the scheduler's step: DDPM's mean shift, DDIM where it clips, and nothing left behind."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.errors import NotApplicable, StateError
from tests import tiny
from tests.adapters.phi_guidance.standin import StandIn, ddim, ddpm, diffusers, noise_of

WISH = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
NOISE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
TIMES = (999, 700, 300, 20)


def along(x: Tensor, y: Any, t: Tensor) -> Tensor:
    """A function whose gradient is ``WISH`` everywhere."""
    return (x * WISH[: len(x)]).flatten(1).sum(1)


def predict(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x) + t.float().mean() / 1000


def predict_wide(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([predict(x, t), torch.cos(x)], dim=1)


def one_step(net: Any, scheduler: Any, time: int, *controls: Any, **options: Any) -> Any:
    with ck.attach(net, *controls, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        return scheduler.step(net(X, time).sample, time, X, **options)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "kind", ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"]
)
def test_ddpm_shifts_the_mean_by_the_variance_times_the_gradient(
    kind: str, prediction: str, clip: bool
) -> None:
    wide = kind.startswith("learned")
    net = StandIn(predict_wide if wide else predict, wide=wide)
    settings = {"variance_type": kind, "prediction_type": prediction, "clip_sample": clip}
    for time in TIMES[:-1]:
        scheduler = ddpm(TIMES, **settings)
        share = torch.cos(X)
        if kind == "learned":
            share = share.abs()
            net = StandIn(lambda x, t: torch.cat([predict(x, t), torch.cos(x).abs()], dim=1), wide=True)
        theirs = scheduler._get_variance(time, predicted_variance=share if wide else None)
        variance = {"fixed_small_log": theirs**2, "learned_range": theirs.exp()}.get(kind, theirs)
        with noise_of(NOISE, NOISE):
            plain = one_step(net, scheduler, time)
            guided = one_step(net, scheduler, time, ck.Guidance(along, scale=2.5))
        expected = plain.prev_sample + 2.5 * variance * WISH
        torch.testing.assert_close(guided.prev_sample, expected.float(), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(guided.prev_sample, plain.prev_sample, rtol=1e-3, atol=1e-3)
        assert torch.equal(guided.pred_original_sample, plain.pred_original_sample)


def test_the_last_step_of_ddpm_takes_the_variance_of_the_one_before() -> None:
    """As the original, whose logarithm of the last variance would be that of 0."""
    scheduler = ddpm(TIMES, variance_type="learned_range", clip_sample=True)
    before, last = scheduler.alphas_cumprod[300], scheduler.alphas_cumprod[20]
    posterior = (1 - last) / (1 - before) * (1 - before / last)
    share = (torch.cos(X) + 1) / 2
    variance = torch.exp(share * (1 - last).log() + (1 - share) * posterior.log())
    net = StandIn(predict_wide, wide=True)
    with noise_of(NOISE, NOISE):
        plain, guided = (
            one_step(net, scheduler, 20, *controls).prev_sample
            for controls in ((), (ck.Guidance(along, scale=50.0),))
        )
    torch.testing.assert_close(guided, (plain + 50 * variance * WISH).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_that_clips_nothing_gives_what_the_noise_shift_gives(prediction: str, eta: float) -> None:
    options: dict[str, Any] = {"eta": eta, "variance_noise": NOISE if eta else None}
    net, control = StandIn(predict), ck.Guidance(along, scale=0.7)
    for time in (750, 250, 0):
        shifted, added = (
            one_step(net, ddim(4, prediction_type=prediction, **clip), time, control, **options)
            for clip in ({"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 1e6})
        )
        torch.testing.assert_close(added.prev_sample, shifted.prev_sample, rtol=1e-5, atol=1e-5)
        clean = shifted.pred_original_sample
        torch.testing.assert_close(added.pred_original_sample, clean, rtol=1e-5, atol=1e-5)


def test_ddim_clips_before_guidance_and_not_after() -> None:
    """Dhariwal & Nichol (2021), algorithm 2, on the clipped clean picture, written out."""
    scheduler = ddim(4, clip_sample=True)
    now, then = scheduler.alphas_cumprod[500], scheduler.alphas_cumprod[250]
    noise = predict(X, torch.tensor([500]))
    clean = ((X - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
    noise = (X - now.sqrt() * clean) / (1 - now).sqrt() - (1 - now).sqrt() * 3 * WISH
    clean = (X - (1 - now).sqrt() * noise) / now.sqrt()
    guided = one_step(
        StandIn(predict), scheduler, 500, ck.Guidance(along, scale=3.0), use_clipped_model_output=True
    )
    expected = then.sqrt() * clean + (1 - then).sqrt() * noise
    torch.testing.assert_close(guided.prev_sample, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided.pred_original_sample, clean, rtol=1e-5, atol=1e-5)
    assert float(guided.pred_original_sample.abs().max()) > 1.5


def test_two_guidances_add_up_and_masks_and_windows_hold() -> None:
    scheduler, net = ddpm(TIMES, clip_sample=True), StandIn(predict)
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    first, second = ck.Guidance(along, scale=2.0, mask=left), ck.Guidance(along, scale=-0.5)
    late = ck.Guidance(along, scale=9.0, start=0.5)
    with noise_of(*[NOISE] * 3):
        plain, guided = (
            one_step(net, scheduler, 999, *controls).prev_sample for controls in ((), (first, second, late))
        )
    variance = scheduler._get_variance(999)
    torch.testing.assert_close(
        guided, (plain + variance * WISH * (2 * left - 0.5)).float(), rtol=1e-5, atol=1e-5
    )


# --- nothing left behind ------------------------------------------------------------------------------


def test_the_scheduler_is_itself_again_however_it_ends() -> None:
    scheduler, net, control = ddpm(TIMES), StandIn(predict), ck.Guidance(along)
    before = dict(vars(scheduler))
    one_step(net, scheduler, 999, control)
    assert vars(scheduler).keys() == before.keys()
    broken = StandIn(lambda x, t: x[[9]])  # raises in the middle of a step
    with pytest.raises(IndexError):
        one_step(broken, scheduler, 999, control)
    assert vars(scheduler).keys() == before.keys()
    own = lambda *args, **kwargs: type(scheduler).step(scheduler, *args, **kwargs)  # noqa: E731
    scheduler.step = own
    one_step(net, scheduler, 999, control)
    assert scheduler.step is own


def test_while_attached_the_step_looks_like_itself_and_is_not_copied() -> None:
    scheduler, net = ddpm(TIMES), StandIn(predict)
    signature = inspect.signature(scheduler.step)
    with ck.attach(net, ck.Guidance(along), scheduler=scheduler, branches=("cond",)):
        assert "step" in vars(scheduler)
        assert inspect.signature(scheduler.step) == signature
        with pytest.raises(StateError, match="copied"):
            copy.deepcopy(scheduler)
        with pytest.raises(StateError, match="copied"):
            pickle.dumps(scheduler)
        result = scheduler.step(net(X, 999).sample, 999, X, return_dict=False)
        assert isinstance(result, tuple)
        assert len(result) == 2


def test_a_loop_that_steps_with_something_else_is_refused() -> None:
    scheduler, net = ddpm(TIMES), StandIn(predict)
    with ck.attach(net, ck.Guidance(along), scheduler=scheduler, branches=("cond",)):
        net(X, 999)
        with pytest.raises(StateError, match="did not call the scheduler's step"):
            net(X, 700)


def test_a_run_that_was_broken_off_does_not_disturb_the_next() -> None:
    scheduler, net = ddpm(TIMES), StandIn(predict)
    with ck.attach(net, ck.Guidance(along), scheduler=scheduler, branches=("cond",)):
        net(X, 999)
        scheduler.set_timesteps(timesteps=list(TIMES))
        for time in TIMES:
            scheduler.step(net(X, time).sample, time, X)


def test_schedulers_that_remember_get_the_noise_shift() -> None:
    for kind in (diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler):
        scheduler, net = kind(), StandIn(predict)
        scheduler.set_timesteps(4)
        time = scheduler.timesteps[0]
        with ck.attach(net, ck.Guidance(along), scheduler=scheduler, branches=("cond",)):
            assert not torch.equal(net(X, time).sample, predict(X, torch.as_tensor(time).reshape(-1)))
            assert "step" not in vars(scheduler)


# --- in a pipeline ------------------------------------------------------------------------------------


def first_latents(pipe: Any, *controls: Any, **changes: Any) -> Tensor:
    """The latents after the first step."""
    kept: list[Tensor] = []

    def keep(_pipe: Any, _index: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept.append(values["latents"].clone())
        return values

    given: dict[str, Any] = {"height": 64, "width": 64, "output_type": "latent", "num_inference_steps": 3}
    with ck.attach(pipe, *controls):
        generator = torch.Generator().manual_seed(1)
        pipe("a house", generator=generator, callback_on_step_end=keep, **given, **changes)
    return kept[0]


def test_in_a_pipeline_guidance_adds_its_share_whatever_classifier_free_guidance_does() -> None:
    scheduler = diffusers.DDPMScheduler(thresholding=True, clip_sample=False, steps_offset=1)
    pipe = tiny.pipeline("sd1", scheduler=scheduler)
    wish = torch.linspace(-1, 1, 4)[None, :, None, None]
    control = ck.Guidance(lambda x, y, t: (x * wish).flatten(1).sum(1), scale=4.0)
    for changes in ({}, {"guidance_rescale": 0.7}):
        plain, guided = (first_latents(pipe, *controls, **changes) for controls in ((), (control,)))
        variance = scheduler._get_variance(scheduler.timesteps[0])
        torch.testing.assert_close(guided, plain + 4 * variance * wish, rtol=1e-4, atol=1e-5)
    pipe.scheduler = tiny.scheduler()
    with pytest.raises(NotApplicable, match="guidance_rescale"):
        first_latents(pipe, control, guidance_rescale=0.7)


def test_a_classifier_is_a_guidance_by_its_log_probability() -> None:
    from tests.adapters.noisy_classifier.networks import classifier

    net = classifier(image_size=8)
    control = net.on([1, 6], scale=30.0)
    assert isinstance(control, ck.Guidance)
    scheduler = ddpm(TIMES, clip_sample=True)
    with noise_of(NOISE, NOISE):
        plain, guided = (
            one_step(StandIn(predict), scheduler, 700, *controls).prev_sample for controls in ((), (control,))
        )
    noisy = X.clone().requires_grad_(True)
    chosen = net(noisy, torch.tensor([700])).log_softmax(-1)[[0, 1], [1, 6]].sum()
    (gradient,) = torch.autograd.grad(chosen, noisy)
    variance = scheduler._get_variance(700)
    assert float((guided - plain).abs().max()) > 1e-3
    torch.testing.assert_close(guided, (plain + 30 * variance * gradient).float(), rtol=1e-5, atol=1e-6)


def test_classes_and_models_that_do_not_fit_are_refused_before_the_first_step() -> None:
    from tests.adapters.noisy_classifier.networks import classifier

    net = classifier()
    for wrong in (7, -1, [0, 7], [], 1.5, True, [[1]], "cat", None):
        with pytest.raises(ck.ParameterError, match="y"):
            net.on(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ck.BaseMismatch, match="3 channels"):
        ck.attach(tiny.unet("sd1"), net.on(0), scheduler=tiny.scheduler())
    scheduler, unet = ddpm(TIMES), StandIn(predict)
    with pytest.raises(ck.BatchMismatch, match="3 classes for 2"):
        one_step(unet, scheduler, 999, net.on([0, 1, 2]))
    small = classifier(pool="attention")
    with pytest.raises(ck.HintError, match="16 a side"):
        one_step(unet, scheduler, 999, small.on(0))
