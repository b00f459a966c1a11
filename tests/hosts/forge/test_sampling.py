"""Controls during Forge's sampling: sums, windows, guidance, errors; with a stand-in for Forge."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.contracts import Active, ExtraAttention, Residuals, RunInfo, Step
from controlkit.engine import Entry
from controlkit.hosts.webui.calls import Announced
from controlkit.hosts.webui.hooks import Controlled
from controlkit.report import ControlRecord
from controlkit.strength import Strength
from tests.hosts.forge import stand_in
from tests.hosts.forge.stand_in_unet import HEADS, UNet
from tests.hosts.webui.test_hooks import SHAPES, Adds, brighter, residuals

CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """Our front in the stand-in."""
    stand_in.install(monkeypatch, tmp_path)
    from controlkit.hosts.forge import script

    return script


class Attends:
    """An image prompt of numbers."""

    name, slots = "attends", frozenset(("attention",))

    def __init__(self, **strength: Any) -> None:
        self.strength = Strength(**strength)

    def check(self, target: Any) -> None: ...

    def prepare(self, run: RunInfo) -> Active:
        draw = torch.Generator().manual_seed(7)
        layers = run.target.attention

        def some() -> tuple[Tensor, ...]:
            return tuple(torch.randn(1, 3, layer.width, generator=draw) for layer in layers)

        extra = ExtraAttention(some(), some())
        return Active(attention=lambda step: extra)


def entries(*controls: Any) -> list[Entry]:
    return [Entry(control, ControlRecord(control.name)) for control in controls]


def by_forge(forge: Any, *controls: Any, model: Any = None, **given: Any) -> tuple[Tensor, Any]:
    """What Forge makes with controls, as its front puts them on; and its model afterwards."""
    model = stand_in.loaded() if model is None else model
    p = SimpleNamespace(sd_model=model)
    front = forge.Front()
    front._p = p
    own = model.forge_objects.unet
    with torch.inference_mode():
        with torch.inference_mode(False), torch.no_grad():
            front._now = forge.held(model, forge.target_of(own), entries(*controls), front.release)
        front._now.install()
        try:
            made = stand_in.sample(front, p, **given)
        finally:
            left = model.forge_objects.unet is not own
            front.release()
        assert left, "on it until the end"
    assert model.forge_objects.unet is own
    return made, model


def by_hooks(*controls: Any, **given: Any) -> Tensor:
    """The same with the hooks that AUTOMATIC1111 gets, on an ordinary model."""
    from controlkit.hosts.forge.model import target_of
    from controlkit.hosts.ldm import places_of

    model = stand_in.loaded(inference=False)
    patcher, coder = model.forge_objects.unet, model.forge_objects.vae.first_stage_model
    images, prompts = given.get("images", 1), given.get("prompts", 1)
    unet = patcher.model.diffusion_model.requires_grad_(False)
    coder.requires_grad_(False)
    hooked = Controlled(
        unet,
        target_of(patcher),
        entries(*controls),
        alpha_bar=lambda step: 1 / (1 + step.level**2),
        decode=lambda latents: coder.decode(coder.process_out(latents)),
        places=places_of(unet),
    )

    class Front:
        def denoising(self, params: Any) -> None:
            rows = ("uncond", *["cond"] * prompts)
            told = params.denoiser.step, params.denoiser.total_steps, images, rows
            hooked.announce(Announced(*told, level=float(params.sigma[0]), timestep=False))

    hooked.install()
    try:
        return stand_in.sample(Front(), SimpleNamespace(sd_model=model), mode=torch.no_grad(), **given)
    finally:
        hooked.remove()


def plain() -> Tensor:
    return stand_in.sample(None, SimpleNamespace(sd_model=stand_in.loaded()))


def adds(seed: int = 2, *, encoder: bool = False, **strength: Any) -> Any:
    own = residuals(seed, encoder=encoder)
    return Adds(residuals=lambda step: own, strength=Strength(**strength))


def tokens(seed: int = 3) -> Any:
    own = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(seed))
    return Adds(tokens=lambda step: own, slots=frozenset(("tokens",)))


def guidance(**more: Any) -> ck.Guidance:
    return ck.Guidance(brighter, **{"scale": 20.0, "sees": "image", **more})


CASES: dict[str, Callable[[], list[Any]]] = {
    "skips": lambda: [adds()],
    "features": lambda: [adds(encoder=True)],
    "two": lambda: [adds(scale=0.5), adds(4, encoder=True)],
    "a window": lambda: [adds(start=0.25, end=0.75)],
    "the prompt's half": lambda: [adds(mode="control")],
    "tokens": lambda: [tokens()],
    "an image prompt": lambda: [Attends(scale=0.7)],
    "tokens and an image prompt": lambda: [tokens(), Attends(mode="control"), adds()],
    "guidance by the picture": lambda: [guidance()],
    "guidance by clean latents": lambda: [guidance(sees="clean"), adds()],
    "guidance through the U-Net": lambda: [guidance(through_unet=True, scale=3.0)],
    "all through the U-Net": lambda: [adds(), tokens(), Attends(), guidance(through_unet=True, scale=3.0)],
}


@pytest.mark.parametrize("given", [{}, {"images": 2}, {"prompts": 2}], ids=["one", "batch", "AND"])
@pytest.mark.parametrize("name", CASES)
def test_it_gives_what_hooks_give(forge: Any, name: str, given: dict[str, int]) -> None:
    if "through" in name and given.get("prompts"):
        with pytest.raises(ck.NotApplicable, match="2 parts"):
            by_forge(forge, *CASES[name](), **given)
        return
    if "guidance" in name and given.get("prompts"):  # hooks see each part, and Forge tells their mean
        made, _ = by_forge(forge, *CASES[name](), **given)
        assert float((made - by_forge(forge, *CASES[name]()[1:], **given)[0]).abs().max()) > 0.01
        return
    made, _ = by_forge(forge, *CASES[name](), **given)
    torch.testing.assert_close(made, by_hooks(*CASES[name](), **given), **CLOSE)
    if not given:
        assert float((made - plain()).abs().max()) > 0.01, "it acts"


def test_a_controlnet_of_someone_else_is_added_to_ours(forge: Any) -> None:
    model = stand_in.loaded()
    model.forge_objects.unet.add_patched_controlnet(stand_in.Constant(0.5))
    made, _ = by_forge(forge, adds(), guidance(through_unet=True, scale=3.0), model=model)
    zeros = tuple(torch.zeros(1, channels, size, size) for channels, size in SHAPES)
    theirs = Residuals(zeros, torch.full((1, 16, 4, 4), 0.5))
    both = [adds(), Adds(residuals=lambda step: theirs), guidance(through_unet=True, scale=3.0)]
    torch.testing.assert_close(made, by_hooks(*both), **CLOSE)


def test_patches_and_wrappers_of_someone_else_are_called(forge: Any) -> None:
    model, called = stand_in.loaded(), []

    def theirs(apply: Any, args: Any) -> Tensor:
        called.append("wrapper")
        return apply(args["input"], args["timestep"], **args["c"])

    def layer(query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor:
        called.append("layer")
        return stand_in.attention(query, key, value, HEADS)

    unet = model.forge_objects.unet
    unet.set_model_unet_function_wrapper(theirs)
    unet.model_options["transformer_options"]["patches_replace"] = {"attn2": {("middle", 0): layer}}
    made, _ = by_forge(forge, Attends(), model=model)
    torch.testing.assert_close(made, by_hooks(Attends()), **CLOSE)
    assert called.count("wrapper") == called.count("layer") == 4
    assert unet.model_options["transformer_options"]["patches_replace"]["attn2"] == {("middle", 0): layer}


def test_a_layer_that_is_passed_by_is_told(forge: Any) -> None:
    model = stand_in.loaded()
    net: UNet = model.forge_objects.unet.model.diffusion_model
    net.input_blocks[1][1].forward = lambda h, *_: h  # type: ignore[method-assign, assignment]
    with pytest.raises(ck.NotApplicable, match="did not ask for more"):
        by_forge(forge, Attends(), model=model)


def failing(step: Step) -> Residuals:
    raise ZeroDivisionError("in a control")


def broken_unet(model: Any) -> Any:
    handle = model.forge_objects.unet.model.diffusion_model.out.register_forward_pre_hook(lambda *_: 1 / 0)
    return handle.remove


@pytest.mark.parametrize("place", ["control", "guidance", "unet", "another"])
def test_an_error_leaves_nothing(forge: Any, place: str) -> None:
    """However it ends, the model's own patcher is back before the error is passed on."""
    model, unbroken = stand_in.loaded(), plain()
    own, mend = model.forge_objects.unet, lambda: None
    controls: list[Any] = [adds()]
    if place == "control":
        controls = [Adds(residuals=failing)]
    elif place == "guidance":
        controls = [ck.Guidance(lambda x, y, t: 1 / 0, sees="noisy")]
    elif place == "unet":
        mend = broken_unet(model)
    else:
        bad = stand_in.Constant(0.5)
        bad.get_control = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
        own.add_patched_controlnet(bad)
    p, front = SimpleNamespace(sd_model=model), forge.Front()
    front._p = p
    front._now = forge.held(model, forge.target_of(own), entries(*controls), front.release)
    front._now.install()
    with pytest.raises((ZeroDivisionError, ck.ControlFailed)):
        stand_in.sample(front, p)
    assert model.forge_objects.unet is own
    assert front._now is None
    own.controlnet_linked_list = None
    mend()
    assert torch.equal(stand_in.sample(front, p), unbroken)


def test_a_refusal_ends_the_picture_and_not_the_next(forge: Any) -> None:
    model = stand_in.loaded()
    p, front = SimpleNamespace(sd_model=model), forge.Front()
    front._refuse(model, ck.ParameterError("unit 0", found="nothing", expected="a picture"))
    with pytest.raises(ck.ParameterError, match="a picture"):
        stand_in.sample(front, p)
    assert torch.equal(stand_in.sample(front, p), plain())


def test_it_acts_on_its_own_picture_alone(forge: Any) -> None:
    """One that ended without telling is taken off when the next begins to denoise."""
    model = stand_in.loaded()
    front, other = forge.Front(), SimpleNamespace(sd_model=model)
    front._p = SimpleNamespace(sd_model=model)
    front._now = forge.held(model, forge.target_of(model.forge_objects.unet), entries(adds()), front.release)
    front._now.install()
    assert torch.equal(stand_in.sample(front, other), plain())


def test_weights_in_low_bits_are_refused_where_gradients_or_sums_need_them(forge: Any) -> None:
    from controlkit.hosts.forge.model import exchanged, weights_of

    patcher = stand_in.loaded().forge_objects.unet
    assert set(weights_of(patcher)) == set(patcher.model.diffusion_model.state_dict())
    assert exchanged(patcher.model, "U-Net") > 0
    assert exchanged(patcher.model, "U-Net") == 0, "once"
    patcher.model.diffusion_model.out.weight = torch.nn.Parameter(
        torch.zeros(4, dtype=torch.uint8), requires_grad=False
    )
    for refused in (lambda: weights_of(patcher), lambda: exchanged(patcher.model, "U-Net")):
        with pytest.raises(ck.NotApplicable, match="low bits"):
            refused()


def test_memory_for_our_networks_is_told(forge: Any) -> None:
    module = ck.embedded.load("t2i-depth")
    control = module.on(torch.rand(1, 3, 64, 64))
    model = stand_in.loaded()
    hold = forge.held(
        model, forge.target_of(model.forge_objects.unet), entries(control, adds()), lambda: None
    )
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert hold.control.inference_memory_requirements(torch.float32) == size
