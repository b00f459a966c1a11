"""Guidance as a patch of MODEL, inside inference mode; with a stand-in for ComfyUI."""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import controlkit as ck
from controlkit.hosts.comfy.attachments import attached
from controlkit.hosts.gradients import ordinary, outside_inference
from tests.hosts.comfy import stand_in

SIGMA = 3.0
ALPHA_BAR = 1 / (1 + SIGMA**2)


class Patcher:
    """A MODEL, as far as a patch sees it."""

    def __init__(self) -> None:
        self.model_options: dict[str, Any] = {"post": []}
        self.wrappers: list[Any] = []
        self.attachments: dict[str, Any] = {}

    def clone(self) -> Patcher:
        new = Patcher()
        new.model_options = copy.deepcopy(self.model_options)
        new.wrappers, new.attachments = list(self.wrappers), dict(self.attachments)
        return new

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.model_options["post"].append(function)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.append(wrapper)

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Any:
    stand_in.install(monkeypatch)
    extension, samplers = ModuleType("comfy.patcher_extension"), ModuleType("comfy.samplers")
    vars(extension)["WrappersMP"] = SimpleNamespace(OUTER_SAMPLE="outer_sample")
    vars(samplers)["calc_cond_batch"] = lambda model, conds, x, sigma, options: [model.network(x)]
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    from controlkit.hosts.comfy import guidance

    return guidance


def sampled(patcher: Patcher, model: Any, x: Tensor, levels: Tensor = stand_in.SIGMAS) -> list[Tensor]:
    """The guided predictions of one sampling, as ComfyUI would run it."""

    class Executor:
        class_obj = SimpleNamespace(model_patcher=SimpleNamespace(model=model), conds={})

        def __call__(self, x: Tensor) -> list[Tensor]:
            results: list[Tensor] = []
            for level in levels[:-1]:
                clean = model.network(x)
                args = {
                    "denoised": clean,
                    "cond_denoised": clean,
                    "input": x,
                    "model": model,
                    "cond": [],
                    "sigma": level.expand(1),
                    "model_options": {"transformer_options": {"sample_sigmas": levels}},
                }
                for function in patcher.model_options["post"]:
                    args["denoised"] = function(args)
                results.append(args["denoised"])
            return results

    run: Any = Executor()
    for wrapper in patcher.wrappers:
        run = (lambda inner, outer: lambda *args: outer(inner, *args))(
            _Bound(run, Executor.class_obj), wrapper
        )
    return run(x)


class _Bound:
    def __init__(self, run: Any, class_obj: Any) -> None:
        self.run, self.class_obj = run, class_obj

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


class Network(nn.Module):
    """x to x0, not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("shift", torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x * self.weight + self.get_buffer("shift"))


def model() -> Any:
    made = stand_in.model()
    whole = nn.Module()
    whole.network = Network()
    for name, value in vars(made).items():
        setattr(whole, name, value)
    return whole


def phi(x: Tensor, y: Any, t: Tensor) -> Tensor:
    return -((x - y) ** 2).flatten(1).sum(1)


@pytest.mark.parametrize("through", [False, True])
def test_it_moves_the_clean_prediction_by_the_gradient(kind: Any, through: bool) -> None:
    y = torch.full((1, 4, 16, 16), 0.5)
    control = ck.Guidance(phi, y, scale=0.2, sees="clean", through_unet=through, start=0.5)
    with torch.inference_mode():
        net, x = model(), torch.randn(1, 4, 16, 16)
        patcher = kind.Guide(control).install(Patcher())
        results = sampled(patcher, net, x)
    assert [torch.equal(result, net.network(x)) for result in results] == [True, True, False, False]
    with torch.inference_mode(False):
        noisy = (x.clone() * ALPHA_BAR**0.5).requires_grad_(True)  # variance-preserving
        plain = Network()(noisy / ALPHA_BAR**0.5)
        noise = (noisy / ALPHA_BAR**0.5 - plain) / SIGMA
        seen = (noisy - (1 - ALPHA_BAR) ** 0.5 * (noise if through else noise.detach())) / ALPHA_BAR**0.5
        (gradient,) = torch.autograd.grad(phi(seen, y, torch.zeros(1)).sum(), noisy)
    expected = plain.detach() + SIGMA * (1 - ALPHA_BAR) ** 0.5 * 0.2 * gradient
    torch.testing.assert_close(results[2].clone(), expected)
    row = attached(patcher)[0].record.row()
    assert (row.applied, row.steps) == (2, 4)


def test_two_add_up_and_the_model_they_came_from_stays(kind: Any) -> None:
    def guide(scale: float) -> Any:
        return kind.Guide(ck.Guidance(phi, 1.0, scale=scale, sees="clean"))

    plain = Patcher()
    one = guide(0.1).install(plain)
    both = guide(0.2).install(one)
    whole = guide(0.3).install(plain)
    x = torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(sampled(both, model(), x)[0], sampled(whole, model(), x)[0])
    assert not plain.model_options["post"]
    assert len(attached(both)) == 2
    assert len(attached(one)) == 1


def test_recurrence_is_refused(kind: Any) -> None:
    with pytest.raises(ck.NotApplicable, match="recurrence=2"):
        kind.Guide(ck.Guidance(phi, 1.0, recurrence=2))


def test_a_picture_is_needed_for_what_sees_pictures(kind: Any) -> None:
    patcher = kind.Guide(ck.Guidance(ck.guidance.color(), "red")).install(Patcher())
    with pytest.raises(ck.NotApplicable, match="without a decoder"):
        sampled(patcher, model(), torch.randn(1, 4, 16, 16))


def test_weights_of_inference_mode_are_exchanged_once_for_the_same_numbers() -> None:
    with torch.inference_mode():
        net = Network()
        assert ordinary(net) == 2
    assert ordinary(net) == 0
    assert not net.weight.is_inference()
    assert not net.weight.requires_grad
    assert float(net.weight) == pytest.approx(0.3)
    x = torch.randn(3, requires_grad=True)
    with outside_inference(weights=[net]), torch.enable_grad():
        hidden = net(x)
        hidden += 1.0  # as ComfyUI adds what a ControlNet gives
        (gradient,) = torch.autograd.grad((hidden**2).sum(), x)
    assert gradient.abs().sum() > 0
