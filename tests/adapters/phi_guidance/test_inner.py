"""How the gradient of one step is taken: in several parts, normalised, shortened, in a region."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.adapters.phi_guidance.standin import StandIn, ddim

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
WISH = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def phi(x: Tensor, y: Any, t: Tensor) -> Tensor:
    return -((x - WISH) ** 4).flatten(1).sum(1)


def predict(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x)


def gradient(sees: str = "noisy", **options: Any) -> tuple[Tensor, float]:
    """s ∇φ as it shifts the noise, and ᾱ of the step."""
    scheduler = ddim(10, clip_sample=False)
    time = scheduler.timesteps[5]
    level = float(scheduler.alphas_cumprod[int(time)])
    net = StandIn(predict)
    guidance = ck.Guidance(phi, sees=sees, **options)  # pyright: ignore[reportArgumentType]
    with ck.attach(net, guidance, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        shifted = net(X, time).sample
    return (shifted - predict(X, time)) / -math.sqrt(1 - level), level


def by_hand(x: Tensor, sees: str, level: float) -> Tensor:
    """∇φ at x_t, the prediction held fixed at that of ``X``."""
    signal, sigma = math.sqrt(level), math.sqrt(1 - level)
    if sees == "noisy":
        return -4 * (x - WISH) ** 3
    clean = (x - sigma * predict(X, torch.tensor(0))) / signal
    return -4 * (clean - WISH) ** 3 / signal


@pytest.mark.parametrize("sees", ["noisy", "clean"])
@pytest.mark.parametrize("scale", [0.02, [(0.0, 0.02), (1.0, 0.5)]])
def test_inner_steps_follow_the_gradient_in_parts(sees: str, scale: Any) -> None:
    found, level = gradient(sees, scale=scale, inner_steps=3)
    moved, total, s = X, torch.zeros_like(X), 0.02
    for _ in range(3):
        part = by_hand(moved, sees, level) / 3
        total = total + part
        moved = X + (1 - level) * s * total
    torch.testing.assert_close(found, s * total)
    at_once, _ = gradient(sees, scale=scale)
    torch.testing.assert_close(at_once, s * by_hand(X, sees, level))
    assert float((found - at_once).abs().max()) > 1e-3


def test_inner_steps_stay_in_the_region() -> None:
    """Elsewhere the picture is, for every inner step, what it was."""
    half = torch.zeros(1, 1, 8, 8)
    half[..., :4] = 1
    found, level = gradient(scale=0.02, inner_steps=2, mask=half)
    whole, _ = gradient(scale=0.02, inner_steps=2)
    torch.testing.assert_close(found[..., :4], whole[..., :4])
    assert not found[..., 4:].any()
    coupled = lambda x, y, t: -(x.mean((2, 3)) ** 2).sum(1) * 100  # noqa: E731
    moved = X.clone()
    first = by_coupled(moved)
    moved[..., :4] += (1 - level) * 0.5 * 0.5 * first[..., :4]
    expected = 0.5 * (first + by_coupled(moved)) / 2
    scheduler, net = ddim(10, clip_sample=False), StandIn(predict)
    time = scheduler.timesteps[5]
    guidance = ck.Guidance(coupled, scale=0.5, inner_steps=2, mask=half)
    with ck.attach(net, guidance, scheduler=scheduler, branches=("cond",)), torch.no_grad():
        shift = (net(X, time).sample - predict(X, time)) / -math.sqrt(1 - level)
    torch.testing.assert_close(shift[..., :4], expected[..., :4])


def by_coupled(x: Tensor) -> Tensor:
    return (-200 * x.mean((2, 3), keepdim=True) / 64).expand_as(x)


def test_a_normalised_gradient_moves_by_the_scale_whatever_phi_returns() -> None:
    for picture, raw in zip(*(gradient(**options)[0] for options in ({"normalize": True}, {})), strict=True):
        torch.testing.assert_close(float(picture.pow(2).mean().sqrt()), 1.0)
        torch.testing.assert_close(picture * (raw.norm() / picture.norm()), raw)


@pytest.mark.parametrize("normalize", [False, True])
def test_no_gradient_is_longer_than_the_largest_norm(normalize: bool) -> None:
    found, _ = gradient(max_norm=2.5, normalize=normalize)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.full((2,), 2.5).double())
    longer, _ = gradient(max_norm=1e9, normalize=normalize)
    plain, _ = gradient(normalize=normalize)
    torch.testing.assert_close(longer, plain)


def test_two_functions_are_their_sum_in_either_order() -> None:
    """Each sees what the U-Net predicts, and not what another has shifted it to."""
    scheduler, net = ddim(10, clip_sample=False), StandIn(predict)
    time = scheduler.timesteps[5]
    near = ck.Guidance(phi, sees="clean", scale=0.01)
    small = ck.Guidance(lambda x, y, t: -(x**2).flatten(1).sum(1), sees="clean")
    shifts = []
    for controls in ((near, small), (small, near), (near,), (small,)):
        with ck.attach(net, *controls, scheduler=scheduler, branches=("cond",)), torch.no_grad():
            shifts.append(net(X, time).sample - predict(X, time))
    torch.testing.assert_close(shifts[0], shifts[1])
    torch.testing.assert_close(shifts[0], shifts[2] + shifts[3])


def test_pure_noise_is_not_guided_and_the_report_says_so() -> None:
    """A schedule without any signal at its first step, where 1 / sqrt(ᾱ) is not a number."""
    scheduler, net = ddim(4, clip_sample=False, prediction_type="v_prediction"), StandIn(predict)
    scheduler.alphas_cumprod[int(scheduler.timesteps[0])] = 0.0
    guidance = ck.Guidance(phi, sees="clean", scale=0.01)
    with ck.attach(net, guidance, scheduler=scheduler, branches=("cond",)) as run, torch.no_grad():
        outputs = [net(X, time).sample for time in scheduler.timesteps]
    assert torch.equal(outputs[0], predict(X, torch.tensor(0)))
    assert all(not torch.equal(output, outputs[0]) for output in outputs[1:])
    assert any("pure noise" in note for note in run.report().rows[0].notes)
