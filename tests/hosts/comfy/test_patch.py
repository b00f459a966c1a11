"""Image prompts and style tokens as patches of MODEL; with a stand-in for ComfyUI."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import controlkit as ck
from controlkit.attention import ExtraAttentions, Term
from controlkit.contracts import ExtraAttention, Residuals
from controlkit.hosts.comfy.attachments import attached
from controlkit.hosts.comfy.kept import REPLAY, Added, Kept
from tests.hosts.comfy import stand_in
from tests.hosts.comfy.networks import VISION, fuser, image_prompt, style

SIGMAS = stand_in.SIGMAS
WIDTHS = (96, 144, 144, 144, 96, 96, 144)
"""Of the stand-in's cross-attention layers."""


class CrossAttention(nn.Module):
    """Attention with the parts that ComfyUI's has."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(128, width, bias=False)
        self.to_v = nn.Linear(128, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        mixed = x + context.mean(dim=(1, 2))[:, None, None]
        self.to_q(x)
        return self.to_out(mixed)


def unet() -> nn.Module:
    """The stand-in with attention that runs."""
    torch.manual_seed(0)
    net = stand_in.unet((96, 144), (True, True))
    for module in net.modules():
        if isinstance(module, stand_in.SpatialTransformer):
            module.attn2 = CrossAttention(module.attn2.to_q.weight.shape[0], 4)
    return net.eval().requires_grad_(False)


class Model:
    """A MODEL: its U-Net, and the wrappers that patches put around it."""

    def __init__(self, model: Any, wrappers: Any = (), attachments: Any = ()) -> None:
        self.model, self.wrappers, self.attachments = model, list(wrappers), dict(attachments)
        self.held: list[Any] = []

    def clone(self) -> Model:
        return Model(self.model, self.wrappers, self.attachments)

    def add_wrapper_with_key(self, kind: str, _key: str, wrapper: Any) -> None:
        self.wrappers.append((kind, wrapper))

    def set_additional_models(self, _key: str, models: list[Any]) -> None:
        self.held += models

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def around(self, kind: str, inner: Any) -> Any:
        """A function within this MODEL's wrappers of one kind, the first outermost."""
        for name, wrapper in reversed(self.wrappers):
            if name == kind:

                def outer(*args: Any, _w: Any = wrapper, _inner: Any = inner, **kwargs: Any) -> Any:
                    class Executor:
                        class_obj = SimpleNamespace(model_patcher=self)

                        def __call__(self, *args: Any, **kwargs: Any) -> Any:
                            return _inner(*args, **kwargs)

                    return _w(Executor(), *args, **kwargs)

                inner = outer
        return inner


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Any:
    stand_in.install(monkeypatch)
    extension = ModuleType("comfy.patcher_extension")
    kinds = SimpleNamespace(OUTER_SAMPLE="sample", DIFFUSION_MODEL="call")
    vars(extension)["WrappersMP"] = kinds
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)
    from controlkit.hosts.comfy import patch

    return patch.Patch


@pytest.fixture
def model() -> Model:
    return Model(stand_in.model(unet()))


Calls = list[tuple[Tensor, Tensor, Any, Any]]


def sampled(
    patched: Model, *, prompt: int = 5, places: tuple[int, ...] = (1, 0), again: bool = False
) -> Calls:
    """A sampling: for each call the context, the layers' results, the control, and further arguments."""
    net = patched.model.diffusion_model
    calls: Calls = []

    def forward(x: Tensor, _t: Any, context: Tensor, _y: Any, control: Any, _o: Any, **more: Any) -> Tensor:
        outs = []
        for module in net.modules():
            if isinstance(module, CrossAttention):
                outs.append(module(torch.ones(len(x), 4, module.to_q.weight.shape[0]), context).flatten())
        calls.append((context, torch.cat(outs), control, more))
        return x

    def run() -> None:
        rows = len(places)
        context = torch.randn(rows, prompt, 128, generator=torch.Generator().manual_seed(3))
        for sigma in SIGMAS[:-1]:
            x, levels = torch.zeros(rows, 4, 2, 2), torch.full((rows,), float(sigma))
            options = {**stand_in.options(*places), "sigmas": levels}
            with torch.no_grad():
                patched.around("call", forward)(x, levels, context, None, None, options)
                if again:
                    row = slice(places.index(0), places.index(0) + 1)
                    options = {**options, "cond_or_uncond": [0], "uuids": [0], REPLAY: True}
                    patched.around("call", forward)(x[row], levels[row], context[row], None, None, options)

    patched.around("sample", run)()
    return calls


def embedding(*shape: int) -> Tensor:
    return torch.randn(*shape, VISION, generator=torch.Generator().manual_seed(8))


def hooks(model: Model) -> int:
    net = model.model.diffusion_model
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_both_halves_get_the_same_number_of_tokens_in_the_steps_of_the_window(
    patch: Any, model: Model
) -> None:
    one = patch(style().on(embedding(1, 5), start=0.5)).install(model)
    both = patch(style().on(embedding(1, 5), scale=2.0)).install(one)
    assert [call[0].shape[1] for call in sampled(both)] == [8, 8, 11, 11]
    assert len(attached(both)) == 2
    assert len(attached(one)) == 1
    assert [found.record.row().applied for found in attached(both)] == [2, 4]
    (context, *_, more) = sampled(one)[-1]
    with torch.no_grad():
        tokens = style()(embedding(1, 5))[0]
    torch.testing.assert_close(context[1, 5:], tokens)
    assert torch.equal(context[0, 5:], context[0, 2:5]), "the negative half repeats its own last ones"
    assert torch.equal(more["crossattn_controlnet"], context[:, :5]), "others go on knowing the plain prompt"


def test_a_picture_is_attended_to_in_every_layer_and_nothing_stays(patch: Any, model: Model) -> None:
    plain = sampled(model)
    patched = patch(image_prompt(False, WIDTHS).on(embedding(1), end=0.5)).install(model)
    calls = sampled(patched, again=True)
    size = plain[0][1].numel() // 2
    for step in range(4):
        whole, replay = calls[2 * step][1], calls[2 * step + 1][1]
        assert torch.equal(whole, plain[step][1]) == (step >= 2)
        assert replay.numel() == size, "the conditional half alone"
    cond = sampled(patched, places=(0,), again=True)
    torch.testing.assert_close(cond[0][1], cond[1][1])
    assert not torch.equal(cond[0][1], sampled(model, places=(0,))[0][1])
    (found,) = attached(patched)
    row = found.record.row()
    assert row.applied == 2
    assert row.norm is not None
    assert row.norm > 0
    assert hooks(model) == 0


def test_a_fuser_adds_tokens_and_features(patch: Any, model: Model) -> None:
    t2i = ck.embedded.load("t2i-depth")
    members = {"depth": t2i.on(torch.rand(1, 3, 16, 16)), "style": style().on(embedding(1, 5))}
    patched = patch(fuser().on(members), ["its hold"]).install(model)
    (context, _, control, _) = sampled(patched)[0]
    assert context.shape == (2, 8, 128)
    assert [part is None for part in control["input"]] == [True, False, True, False][::-1][:4] or control[
        "input"
    ]
    assert patched.held == ["its hold"]


def test_an_error_in_a_sampling_leaves_nothing(patch: Any, model: Model) -> None:
    patched = patch(image_prompt(False, WIDTHS).on(embedding(1))).install(model)

    def failing(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        levels = torch.ones(1)
        options = {**stand_in.options(0), "sigmas": levels}
        patched.around("call", failing)(
            torch.zeros(1, 4, 2, 2), levels, torch.zeros(1, 5, 128), None, None, options
        )

    with pytest.raises(KeyboardInterrupt):
        patched.around("sample", run)()
    assert hooks(model) == 0
    with pytest.raises(ck.NotApplicable, match="outside of a sampling"):
        run()


def test_what_does_not_fit_is_refused_before_any_sampling(patch: Any, model: Model) -> None:
    wide = Model(stand_in.model(stand_in.unet((320, 640), (True, True), tokens=768)))
    with pytest.raises(ck.BaseMismatch):
        patch(style().on(embedding(1, 5))).install(wide)
    with pytest.raises(ck.NotApplicable, match="no cross-attention layers"):
        patch(image_prompt(plus=False).on(embedding(1))).install(wide)
    with pytest.raises(ck.NotApplicable, match="nodes of its own"):
        patch(ck.Guidance(ck.guidance.color(), "red")).install(model)


def test_kept_parts_are_joined_in_any_order() -> None:
    def rows(*values: float) -> Tensor:
        return torch.tensor(values).view(-1, 1, 1)

    target: Any = None
    masks = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(4, 1, 1)
    term = Term("a", ExtraAttention((rows(0, 1, 2, 3),), (rows(7.0),)), (1.0,), lambda stride: masks)
    kept = Kept()
    residuals = Residuals((rows(0, 1, 2, 3)[..., None],), rows(5.0)[..., None])
    kept.keep(["x", "y"], Added(residuals, rows(0, 1, 2, 3), ExtraAttentions((term,), target)), 4)
    back = kept.again(["y", "x"])
    assert back.tokens is not None
    assert back.tokens.flatten().tolist() == [2, 3, 0, 1]
    assert back.residuals.skips[0].flatten().tolist() == [2, 3, 0, 1]
    assert back.attention is not None
    (joined,) = back.attention.terms
    assert joined.extra.keys[0].flatten().tolist() == [2, 3, 0, 1]
    assert joined.extra.values[0].flatten().tolist() == [7, 7, 7, 7]
    mask = joined.mask(1)
    assert mask is not None
    assert mask.flatten().tolist() == [2, 3, 0, 1]
    assert kept.again(["z"]).tokens is None
    kept.clear()
    assert not kept.again(["x"]).residuals
