"""What a function of guidance can do wrong: a typed error that names the step, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import controlkit as ck
from controlkit.errors import ControlFailed, NonFiniteAtStep, NotApplicable, ParameterError
from tests import tiny
from tests.engine.test_composition import call
from tests.engine.test_undo import unchanged

ROWS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def phi(x: Tensor, y: Any, t: Tensor) -> Tensor:
    return -((x - ROWS) ** 2).flatten(1).sum(1)


def after(calls: int, then: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """As ``phi`` so many times, then something else."""
    left = [calls]

    def function(x: Tensor, y: Any, t: Tensor) -> Tensor:
        left[0] -= 1
        return phi(x, y, t) if left[0] >= 0 else then(x)

    return function


def raises(x: Tensor) -> Tensor:
    raise ZeroDivisionError("of my own")


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return phi(x, None, x)


FAULTS: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "NaN in the gradient": (lambda x: (x - x).sqrt().flatten(1).sum(1), NonFiniteAtStep, "step 3 of 4"),
    "infinity in the gradient": (lambda x: (x / 0).flatten(1).sum(1), NonFiniteAtStep, "step 3 of 4"),
    "one number for all": (lambda x: phi(x, None, x).sum(), ParameterError, r"result of \(\)"),
    "(B, H, W)": (lambda x: x.sum(1), ParameterError, r"\(1, 8, 8\).*one log-probability per picture"),
    "(B, 1)": (lambda x: x.flatten(1).sum(1, keepdim=True), ParameterError, r"\(1, 1\)"),
    "more rows": (lambda x: x.flatten(1).sum(1).repeat(2), ParameterError, r"\(2,\)"),
    "a number of Python": (lambda x: 3.0, ParameterError, "result of float"),
    "an array": (lambda x: x.detach().flatten(1).sum(1).numpy(), ParameterError, "result of ndarray"),
    "detached": (lambda x: x.detach().flatten(1).sum(1), ParameterError, "without a gradient"),
    "no_grad inside": (without_gradients, ParameterError, "without a gradient"),
    "a label, not a logit": (lambda x: x.flatten(1).argmax(1), ParameterError, "without a gradient"),
    "of something else": (
        lambda x: torch.ones(1, requires_grad=True) * 2,
        ParameterError,
        "does not depend on x",
    ),
    "raises": (raises, ControlFailed, "step 3 of 4.*of my own"),
    "changes x": (lambda x: x.mul_(2).flatten(1).sum(1), ControlFailed, "step 3 of 4"),
    "wrong shapes inside": (lambda x: (x @ torch.ones(3, 3)).sum(), ControlFailed, "step 3 of 4"),
}


@pytest.mark.parametrize("options", [{}, {"inner_steps": 2}, {"normalize": True, "max_norm": 1.0}], ids=str)
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_phi_is_typed_and_leaves_nothing(case: str, options: dict[str, Any]) -> None:
    then, error, says = FAULTS[case]
    pipe = tiny.pipeline("sd1")
    function = after(2 * options.get("inner_steps", 1), then)
    with (
        unchanged(pipe),
        pytest.raises(error, match=says),
        ck.attach(pipe, ck.Guidance(function, scale=0.01, **options)),
    ):
        call(pipe, num_inference_steps=4)


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 1))
        tiny.randomize(self, 3)  # which also freezes it

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("sees", ["noisy", "clean", "image"])
def test_gradients_are_there_in_every_mode_and_none_are_left(sees: Any, frozen: bool, mode: Any) -> None:
    """Weights that are frozen or not, in inference mode or out of it: one picture, and no .grad anywhere."""
    pipe, judge = tiny.pipeline("sd1"), Judge().requires_grad_(not frozen)
    pipe.unet.requires_grad_(not frozen)

    def wish(x: Tensor, y: Any, t: Tensor) -> Tensor:
        return -(x**2).flatten(1).mean(1) * 100 if sees == "image" else judge(x)

    control = ck.Guidance(wish, scale=0.5, sees=sees)
    with ck.attach(pipe, control):
        expected = call(pipe)
    with ck.attach(pipe, control), mode():
        found = call(pipe)
    assert torch.equal(found, expected)
    assert float((found - call(pipe)).abs().max()) > 1e-3
    parameters = (*pipe.unet.parameters(), *pipe.vae.parameters(), *judge.parameters())
    assert all(parameter.grad is None for parameter in parameters)
    assert not found.requires_grad


def test_pixels_need_a_decoder() -> None:
    unet, clock = tiny.unet("sd1"), tiny.scheduler()
    clock.set_timesteps(2)
    control = ck.Guidance(phi, sees="image")
    with ck.attach(unet, control, scheduler=clock), pytest.raises(NotApplicable, match="without a VAE"):
        unet(torch.zeros(1, 4, 8, 8), clock.timesteps[0], torch.zeros(1, 4, 768))
