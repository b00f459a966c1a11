"""The gradient through the U-Net: against finite differences, in every way that a U-Net is called."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.errors import ParameterError
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.engine import attending
from tests.engine.test_composition import call, picture

TOKENS = torch.randn(2, 12, 768, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
WISH = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

EMBEDDING = torch.randn(1, peers.PROJECTED, generator=torch.Generator().manual_seed(4))


def phi(x: Tensor, y: Any, t: Tensor) -> Tensor:
    """Neither linear nor small; of pixels it takes what fits."""
    wish = WISH.to(x) if x.shape == WISH.shape else torch.full_like(x, 0.3)
    return (torch.cos(x) * wish).flatten(1).sum(1)


def clock_of(steps: int = 5) -> Any:
    clock = tiny.scheduler()
    clock.set_timesteps(steps)
    return clock


def predicted(unet: Any, x: Tensor, time: Any, *controls: Any, clock: Any, branches: Any) -> Tensor:
    rows = len(branches)
    with ck.attach(unet, *controls, scheduler=clock, branches=branches), torch.no_grad():
        return unet(x.repeat(rows, 1, 1, 1), time, TOKENS[:rows].to(x)).sample


@pytest.mark.parametrize("branches", [("cond",), ("uncond", "cond")])
@pytest.mark.parametrize("beside", ["nothing", "adapter", "image prompt"])
def test_it_agrees_with_finite_differences(beside: str, branches: tuple[Any, ...]) -> None:
    """In float64. What other controls add is held fixed; that of these does not depend on the picture."""
    unet, clock = tiny.unet("sd1").double(), clock_of()
    time = clock.timesteps[2]
    alpha_bar = float(clock.alphas_cumprod[time])
    signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    others = {
        "nothing": list[Any],
        "adapter": lambda: [tiny.t2i_adapter("sd1").double().on(picture(2))],
        "image prompt": lambda: [attending.adapter(SimpleNamespace(unet=unet)).double().on(EMBEDDING)],
    }[beside]()

    def value(x: Tensor) -> float:
        """phi of the clean latents that the conditional rows predict."""
        noise = predicted(unet, x, time, *others, clock=clock, branches=branches)[-1:]
        return float(phi((x - sigma * noise) / signal, None, time))

    guidance = ck.Guidance(phi, sees="clean", through_unet=True)
    plain = predicted(unet, X, time, *others, clock=clock, branches=branches)
    guided = predicted(unet, X, time, *others, guidance, clock=clock, branches=branches)
    gradient = (guided - plain) / -sigma
    torch.testing.assert_close(gradient[:1], gradient[-1:])  # every branch gets the same
    for seed in range(4):
        direction = torch.randn(X.shape, generator=torch.Generator().manual_seed(seed)).double()
        wide, narrow = (
            (value(X + step * direction) - value(X - step * direction)) / (2 * step) for step in (2e-5, 1e-5)
        )
        slope = (4 * narrow - wide) / 3  # without the error of the second order (Richardson)
        torch.testing.assert_close(float((gradient[:1] * direction).sum()), slope, rtol=1e-6, atol=1e-8)
    fixed = predicted(unet, X, time, *others, ck.Guidance(phi, sees="clean"), clock=clock, branches=branches)
    assert float((fixed - guided).abs().max()) > 1e-3  # the U-Net's part is a part


def guided(pipe: Any, **options: Any) -> Tensor:
    with ck.attach(pipe, ck.Guidance(phi, scale=0.3, sees="clean", through_unet=True, **options)):
        return call(pipe)


def same(found: Tensor, expected: Tensor, plain: Tensor) -> None:
    allowed = 3e-5 * float(expected.abs().max())  # float32, in another order; 4e-6 were seen
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)
    assert float((found - plain).abs().max()) > 1e-2


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_conditional_rows_alone_are_those_of_the_whole_batch(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny.pipeline(family)
    alone = guided(pipe)
    monkeypatch.setattr("controlkit.hosts.replay._PLAIN", frozenset())
    same(alone, guided(pipe), call(pipe))


@pytest.mark.parametrize("way", ["inference mode", "checkpointing", "compiled"])
def test_every_way_gives_what_the_plain_one_does(way: str) -> None:
    pipe = tiny.pipeline("sd1")
    plain, expected = call(pipe), guided(pipe)
    if way == "inference mode":
        with torch.inference_mode():
            found = guided(pipe)
    elif way == "checkpointing":
        before = [dict(vars(module)) for module in (*pipe.unet.modules(), *pipe.vae.modules())]
        found = guided(pipe, checkpointing=True)
        assert [dict(vars(module)) for module in (*pipe.unet.modules(), *pipe.vae.modules())] == before
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
        found = guided(pipe)
    same(found.clone(), expected, plain)


def test_checkpointing_keeps_fewer_activations() -> None:
    """Counted: the numbers that autograd keeps between the passes, for the U-Net and the decoder."""
    pipe = tiny.pipeline("sd1")
    kept: list[int] = []
    for checkpointing in (False, True):
        held: list[int] = []

        def pack(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.numel())
            return tensor

        guidance = ck.Guidance(phi, sees="image", through_unet=True, checkpointing=checkpointing)
        with ck.attach(pipe, guidance), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call(pipe, num_inference_steps=1)
        kept.append(sum(held))
    plain, checkpointed = kept
    assert checkpointed < plain / 2


def test_it_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ParameterError, match="sees='clean'"):
        ck.Guidance(phi, through_unet=True)
    with pytest.raises(ParameterError, match="sees='clean'"):
        ck.Guidance(phi, sees="noisy", through_unet=True)
