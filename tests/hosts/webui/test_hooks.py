"""Controls on a U-Net of the web UI's kind, by hooks; without the web UI."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.contracts import Active, Residuals, RunInfo, Slot, Step, Target
from controlkit.engine import Entry
from controlkit.hosts.webui.calls import announced
from controlkit.hosts.webui.hooks import Controlled
from controlkit.hosts.webui.model import alpha_bar_of, decoder_of, target_of
from controlkit.report import ControlRecord
from controlkit.strength import Strength
from tests.hosts.webui import stand_in

SHAPES = ((8, 8), (8, 8), (8, 4), (16, 4))
"""Channels and size of the skips of the stand-in at 8x8."""


@dataclass(frozen=True)
class Adds:
    """A control that adds what a function says."""

    name: str = "adds"
    strength: Strength = field(default_factory=Strength)
    slots: frozenset[Slot] = frozenset(("skips", "mid", "encoder"))
    residuals: Callable[[Step], Residuals] | None = None
    tokens: Callable[[Step], Tensor] | None = None

    def check(self, target: Target) -> None: ...

    def prepare(self, run: RunInfo) -> Active:
        return Active(residuals=self.residuals, tokens=self.tokens)


def residuals(seed: int, *, encoder: bool = False) -> Residuals:
    generator = torch.Generator().manual_seed(seed)

    def one(channels: int, size: int) -> Tensor:
        return torch.randn(1, channels, size, size, generator=generator)

    if encoder:
        return Residuals(encoder=(one(8, 8), one(16, 4)))
    return Residuals(tuple(one(*shape) for shape in SHAPES), one(16, 4))


def by_hand(
    unet: Any, x: Tensor, t: Tensor, context: Tensor, *, added: Residuals, features: Residuals
) -> Tensor:
    """The U-Net's own sum, with what is added in its places."""
    emb, skips, h = t.float()[:, None] / 1000, [], x
    places = dict(zip((1, 3), features.encoder, strict=False))
    for number, block in enumerate(unet.input_blocks):
        h = block(h, emb, context)
        h = h + places[number] if number in places else h
        skips.append(h)
    h = unet.middle_block(h, emb, context)
    if added.mid is not None:
        h = h + added.mid
    extra = list(added.skips or [0.0] * len(skips))
    for block in unet.output_blocks:
        h = block(torch.cat([h, skips.pop() + extra.pop()], dim=1), emb, context)
    return unet.out(h)


def controlled(model: Any, *controls: Any) -> Controlled:
    made = Controlled(
        model.model.diffusion_model,
        target_of(model),
        [Entry(control, ControlRecord(control.name)) for control in controls],
        alpha_bar=lambda step: alpha_bar_of(model, step.level, timestep=step.timestep),
        decode=decoder_of(model),
    )
    made.install()
    return made


def hooks(model: Any) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in model.model.diffusion_model.modules() for kind in kinds)


def call(rows: int = 2, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, 4, 8, 8), torch.full((rows,), 500.0), torch.randn(rows, tokens, 6)


@pytest.mark.parametrize("encoder", [False, True])
def test_what_is_added_arrives_in_its_place(encoder: bool) -> None:
    model = stand_in.model()
    unet, given = model.model.diffusion_model, call()
    own = residuals(2, encoder=encoder)
    now = controlled(model, Adds(residuals=lambda step: own))
    now.announce(announced(stand_in.params()))
    with torch.no_grad():
        got = unet(*given)
        now.remove()
        nothing = Residuals()
        want = by_hand(unet, *given, added=nothing if encoder else own, features=own if encoder else nothing)
        plain = unet(*given)
    assert torch.allclose(got, want, atol=1e-6)
    assert not torch.allclose(got, plain, atol=1e-3)
    assert hooks(model) == 0


def test_two_units_sum() -> None:
    model, given = stand_in.model(), call()
    unet, a, b, f = model.model.diffusion_model, residuals(2), residuals(3), residuals(4, encoder=True)
    half = Strength(0.5)
    now = controlled(
        model,
        Adds(residuals=lambda step: a, strength=half),
        Adds(residuals=lambda step: b),
        Adds(residuals=lambda step: f),
    )
    now.announce(announced(stand_in.params()))
    with torch.no_grad():
        got = unet(*given)
        now.remove()
        skips = tuple(0.5 * p + q for p, q in zip(a.skips, b.skips, strict=True))
        assert a.mid is not None
        assert b.mid is not None
        total = Residuals(skips, 0.5 * a.mid + b.mid)
        assert torch.allclose(got, by_hand(unet, *given, added=total, features=f), atol=1e-6)


def test_tokens_are_appended_by_position_and_by_name() -> None:
    model, (x, t, context) = stand_in.model(), call()
    unet = model.model.diffusion_model
    extra = torch.randn(1, 3, 6)
    now = controlled(model, Adds(tokens=lambda step: extra, slots=frozenset(("tokens",))))
    longer = torch.cat([context, extra.expand(2, -1, -1)], dim=1)
    with torch.no_grad():
        now.announce(announced(stand_in.params()))
        by_place = unet(x, t, context)
        now.announce(announced(stand_in.params()))
        by_name = unet(x, timesteps=t, context=context)
        now.remove()
        assert torch.equal(by_place, unet(x, t, longer))
        assert torch.equal(by_place, by_name)


def test_another_extension_s_mark_stays_before_the_prompt_and_only_the_unet_s_blocks_see_our_tokens() -> None:
    model, (x, t, context) = stand_in.model(), call()
    unet, seen = model.model.diffusion_model, list[Any]()
    extra = torch.randn(1, 3, 6)

    def look(step: Step) -> Tensor:
        seen.append(step.prompt)
        return extra

    mark = torch.tensor([1024.0, -1024.0]).reshape(2, 1, 1).expand(2, 1, 6)
    marked = torch.cat([mark, context], dim=1)
    now = controlled(model, Adds(tokens=look, slots=frozenset(("tokens",))))
    entered = unet.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    with torch.no_grad():
        now.announce(announced(stand_in.params()))
        got = unet(x, t, marked)
        entered.remove()
        now.remove()
        assert torch.equal(got, unet(x, t, torch.cat([context, extra.expand(2, -1, -1)], dim=1)))
    assert torch.equal(seen[0], context)
    assert torch.equal(seen[1], marked), "what else the other extension runs gets its own"
    assert hooks(model) == 0


def test_the_conditional_half_alone_whichever_way_the_halves_are_run() -> None:
    model, (x, t, context) = stand_in.model(), call()
    unet, own = model.model.diffusion_model, residuals(2)
    now = controlled(model, Adds(residuals=lambda step: own, strength=Strength(mode="control")))
    with torch.no_grad():
        now.announce(announced(stand_in.params()))
        together = unet(x, t, context)
        now.announce(announced(stand_in.params()))
        first, second = unet(x[:1], t[:1], context[:1]), unet(x[1:], t[1:], context[1:])
        now.remove()
        assert torch.allclose(together, torch.cat([first, second]), atol=1e-6)
        plain = unet(x, t, context)
    assert torch.allclose(together[1], plain[1], atol=1e-6), "the rows of the negative prompt come last"
    assert not torch.allclose(together[0], plain[0], atol=1e-3)


def test_calls_of_someone_else_get_nothing() -> None:
    model, given = stand_in.model(), call()
    unet, own = model.model.diffusion_model, residuals(2)
    with torch.no_grad():
        plain = unet(*given)
        now = controlled(model, Adds(residuals=lambda step: own))
        assert torch.equal(unet(*given), plain), "before the denoiser announced one"
        now.announce(announced(stand_in.params()))
        unet(*given)
        assert torch.equal(unet(*given), plain), "after all announced rows were run"
        now.remove()


def failing(step: Step) -> Residuals:
    raise ZeroDivisionError("in a control")


def too_large(step: Step) -> Residuals:
    own = residuals(2)
    return dataclasses.replace(own, mid=torch.full_like(own.mid, float("inf")))


@pytest.mark.parametrize(
    ("broken", "error", "told"),
    [
        (lambda now: failing, ck.ControlFailed, "in a control"),
        (lambda now: too_large, ck.NonFiniteAtStep, "NaN or infinity"),
        (lambda now: None, ValueError, "given"),
    ],
)
def test_an_error_leaves_nothing(broken: Any, error: type[Exception], told: str) -> None:
    model, given = stand_in.model(), call()
    unet = model.model.diffusion_model
    with torch.no_grad():
        plain = unet(*given)
        now = controlled(model, Adds(residuals=broken(None)))
        if broken(None) is None:
            now.fail(ValueError("given from outside"))
        now.announce(announced(stand_in.params()))
        with pytest.raises(error, match=told):
            unet(*given)
        assert hooks(model) == 0
        assert torch.equal(unet(*given), plain)


def test_an_error_of_the_unet_leaves_nothing_that_acts() -> None:
    model, given = stand_in.model(), call()
    unet, own = model.model.diffusion_model, residuals(2)
    with torch.no_grad():
        plain = unet(*given)
        now = controlled(model, Adds(residuals=lambda step: own))
        now.announce(announced(stand_in.params()))
        handle = unet.middle_block.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unet(*given)
        handle.remove()
        assert hooks(model) == 1, "the hook that saw it"
        assert torch.equal(unet(*given), plain)
        now.remove()
    assert hooks(model) == 0


def brighter(x: Tensor, y: Any, t: Any) -> Tensor:
    return x.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("sees", ["noisy", "clean", "image"])
@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_guidance_shifts_every_row_alike(sees: Any, parameterization: str) -> None:
    model, given = stand_in.model(parameterization=parameterization), call()
    unet = model.model.diffusion_model
    with torch.no_grad():
        plain = unet(*given)
        now = controlled(model, ck.Guidance(brighter, sees=sees, scale=10.0))
        now.announce(announced(stand_in.params()))
        shift = unet(*given) - plain
        now.announce(announced(stand_in.params()))
        halves = [unet(*(part[rows] for part in given)) for rows in (slice(0, 1), slice(1, 2))]
        now.remove()
    assert float(shift.abs().max()) > 1e-3
    assert torch.allclose(shift[0], shift[1], atol=1e-6)
    assert torch.allclose(torch.cat(halves), plain + shift, atol=1e-6)


def test_the_gradient_through_the_unet_is_that_of_its_sum() -> None:
    model, given = stand_in.model(), call()
    unet, own = model.model.diffusion_model, residuals(2)
    phi = ck.Guidance(brighter, sees="clean", through_unet=True, scale=3.0)
    alpha = alpha_bar_of(model, 2.0, timestep=False)
    with torch.no_grad():
        now = controlled(model, Adds(residuals=lambda step: own), phi)
        now.announce(announced(stand_in.params()))
        got = unet(*given)
        now.remove()
        plain = by_hand(unet, *given, added=own, features=Residuals())
    x = given[0][:1].clone().requires_grad_()
    noise = by_hand(unet, x, given[1][:1], given[2][:1], added=own, features=Residuals())
    clean = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    (gradient,) = torch.autograd.grad(brighter(clean, None, None).sum(), x)
    assert torch.allclose(
        got - plain, (-((1 - alpha) ** 0.5) * 3.0 * gradient).expand(2, -1, -1, -1), atol=1e-5
    )


def test_a_unet_without_gradients_is_not_guided_through(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = stand_in.model(), call()
    unet = model.model.diffusion_model
    monkeypatch.setattr(unet, "forward", torch.no_grad()(unet.forward))  # as sd-webui-controlnet's
    now = controlled(model, ck.Guidance(brighter, sees="clean", through_unet=True))
    now.announce(announced(stand_in.params()))
    with torch.no_grad(), pytest.raises(ck.NotApplicable, match="without gradients"):
        unet(*given)
    assert hooks(model) == 0


def test_masks_beside_the_latents_are_no_latents() -> None:
    model = stand_in.model(stand_in.UNetModel(beside=5))
    unet = model.model.diffusion_model
    _, t, context = call()
    seen: list[Tensor] = []

    def look(step: Step) -> Residuals:
        seen.append(step.latents)
        return residuals(2)

    now = controlled(model, Adds(residuals=look), ck.Guidance(brighter, sees="clean", through_unet=True))
    now.announce(announced(stand_in.params()))
    with torch.no_grad():
        unet(torch.randn(2, 9, 8, 8), t, context)
    now.remove()
    assert seen[0].shape == (2, 4, 8, 8)
