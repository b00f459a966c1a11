"""The style adapter: the original's numbers, its tokens beside the prompt's, and what is refused."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.style_adapter import StyleAdapter, StyleAdapterConfig
from controlkit.checkpoints.formats import recognise
from controlkit.errors import (
    BaseMismatch,
    BatchMismatch,
    CheckpointError,
    ConfigError,
    HintError,
    Incomplete,
    ParameterError,
    ShapeMismatch,
)
from tests import golden_cases, tiny

CASES = [name for name in golden_cases.names("t2i_adapter", "style")]
PROMPT = 7


def style(seed: int = 0, **changes: Any) -> StyleAdapter:
    """A tiny style adapter for the tiny SD 1 U-Net."""
    config = StyleAdapterConfig(
        **{"width": 24, "context_dim": 768, "num_head": 2, "n_layes": 1, "num_token": 3, **changes}
    )
    net = tiny.randomize(StyleAdapter(config), seed + 30)
    assert isinstance(net, StyleAdapter)
    return net


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the network --------------------------------------------------------------------------------------


def test_the_kept_case_is_there() -> None:
    assert "t2i_adapter/style" in CASES


@pytest.mark.parametrize("only", [True, False], ids=["heads", "all arguments"])
@pytest.mark.parametrize("name", CASES)
def test_tokens_are_the_original_s(name: str, only: bool) -> None:
    case = golden_cases.load_case(name)
    args = case.config["args"]
    net = ck.load(case.weights, config={"num_head": args["num_head"]} if only else args)
    assert isinstance(net, ck.StyleAdapter)
    assert net.notes == ()
    with torch.no_grad():
        golden_cases.assert_equal(net(case.inputs["clip_hidden"]), case.outputs["tokens"])


@pytest.mark.parametrize("name", CASES)
def test_the_head_count_matters_and_is_never_guessed(name: str) -> None:
    case = golden_cases.load_case(name)
    with pytest.raises(ConfigError, match="num_head"):
        ck.load(case.weights)
    other = ck.load(case.weights, config={"num_head": 2 * case.config["args"]["num_head"]})
    with torch.no_grad():
        found = other(case.inputs["clip_hidden"])
    assert golden_cases.relative_error(found, case.outputs["tokens"]) > 1e-3


def test_the_published_file_needs_no_config() -> None:
    with torch.device("meta"):
        published = StyleAdapter()
    shapes = {key: tuple(part.shape) for key, part in published.state_dict().items()}
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == (42, 38_587_392)
    layout = recognise(shapes, "")
    assert (layout.kind, layout.layout) == ("style-adapter", "t2i-original")
    made = layout.load_reader().plan(layout.layout, shapes, None, "")
    with torch.device("meta"):
        net = made.build()
    assert isinstance(net, StyleAdapter)
    assert (net.config, net.base) == (StyleAdapterConfig(), "sd1")
    fewer = {**shapes, "style_embedding": (1, 4, 1024)}
    with pytest.raises(ConfigError, match="num_head"):
        layout.load_reader().plan(layout.layout, fewer, None, "")


def test_saved_and_read_back_to_the_bit_in_both_layouts(tmp_path: Path) -> None:
    net, clip_tokens = style(), draw(2, 5, 24)
    again = ck.load(net.save(tmp_path / "folder"))
    assert isinstance(again, StyleAdapter)
    assert again.config == net.config
    file = net.save(tmp_path / "style.safetensors", layout="original")
    info = ck.inspect(file)
    assert (info.kind, info.base, info.config["num_token"]) == ("style-adapter", "sd1", 3)
    original = ck.load(file, config={"num_head": 2})
    with torch.no_grad():
        assert torch.equal(again(clip_tokens), net(clip_tokens))
        assert torch.equal(original(clip_tokens), net(clip_tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    net, clip_tokens = style(), draw(2, 5, 24)
    with torch.no_grad():
        expected = net(clip_tokens)
        found = net.to(dtype)(clip_tokens.to(dtype))
    assert found.dtype == dtype
    assert golden_cases.relative_error(found, expected) < 0.03


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"num_head": 5}, ConfigError, "divides"),
        ({"num_head": 2, "width": 32}, ShapeMismatch, "style_embedding|transformer"),
        ({"num_head": 2, "n_layes": 2}, Incomplete, "transformer_layes.1"),
        ({"num_head": 2, "depth": 2}, ConfigError, "depth"),
        ({"num_head": 2, "n_layes": 10**6}, ConfigError, "n_layes"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    config: dict[str, Any], error: type[CheckpointError], words: str
) -> None:
    with pytest.raises(error, match=words):
        ck.load(style().original_state(), config=config)


@pytest.mark.parametrize("damage", ["style_embedding", "proj", "ln_pre.weight"])
def test_a_file_with_something_missing_or_flat_is_refused(damage: str) -> None:
    state = style().original_state()
    flat = {**state, damage: torch.zeros(2)}
    del state[damage]
    for broken in (flat, state):
        with pytest.raises(CheckpointError):
            ck.load(broken, config={"num_head": 2})


# --- in a run -----------------------------------------------------------------------------------------


def predict(unet: Any, prompt: Tensor, *controls: Any, rows: int = 1, **options: Any) -> Tensor:
    """One prediction for as many equal latents as there are rows of the prompt."""
    latents = draw(rows, 4, 8, 8).repeat(prompt.shape[0] // rows, 1, 1, 1)
    with torch.no_grad(), ck.attach(unet, *controls, **options):
        return unet(latents, 7, prompt).sample


def test_without_guidance_the_weighted_tokens_follow_the_prompt() -> None:
    unet, net, clip_tokens, prompt = tiny.unet(), style(), draw(1, 5, 24), draw(1, PROMPT, 768)
    found = predict(unet, prompt, net.on(clip_tokens, scale=0.7))
    with torch.no_grad():
        longer = torch.cat([prompt, net(clip_tokens) * 0.7], dim=1)
    assert torch.equal(found, predict(unet, longer))
    assert not torch.allclose(found, predict(unet, prompt))


@pytest.mark.parametrize("scale", [0.7, 1.0])
def test_the_unconditional_half_gets_its_own_last_tokens_once_more(scale: float) -> None:
    unet, net, clip_tokens, prompt = tiny.unet(), style(), draw(1, 5, 24), draw(2, PROMPT, 768)
    with torch.no_grad():
        cond = torch.cat([prompt[1:], net(clip_tokens) * scale], dim=1)
    uncond = torch.cat([prompt[:1], prompt[:1, -3:]], dim=1)
    expected = predict(unet, torch.cat([uncond, cond]))
    found = predict(unet, prompt, net.on(clip_tokens, scale=scale), branches=("uncond", "cond"))
    assert torch.equal(found, expected)
    turned = predict(unet, prompt.flip(0), net.on(clip_tokens, scale=scale), branches=("cond", "uncond"))
    assert torch.equal(turned.flip(0), expected)


@pytest.mark.parametrize("order", [("uncond", "cond"), ("cond", "uncond")], ids="-".join)
def test_halves_that_are_run_apart_have_the_length_of_halves_run_together(order: Any) -> None:
    unet, prompt, clip_tokens = tiny.unet(), draw(2, PROMPT, 768), draw(1, 5, 24)
    controls = style().on(clip_tokens, scale=0.7), style(1, num_token=2).on(clip_tokens)
    together = predict(unet, prompt, *controls, branches=order)
    apart = [
        predict(unet, half, *controls, branches=(branch,))
        for half, branch in zip(prompt.chunk(2), order, strict=True)
    ]
    golden_cases.assert_equal(torch.cat(apart), together)


def test_two_styles_pad_with_as_many_tokens_as_both_have() -> None:
    unet, prompt, clip_tokens = tiny.unet(), draw(2, PROMPT, 768), draw(1, 5, 24)
    first, second = style(), style(1, num_token=2)
    with torch.no_grad():
        cond = torch.cat([prompt[1:], first(clip_tokens), second(clip_tokens) * 0.5], dim=1)
    uncond = torch.cat([prompt[:1], prompt[:1, -5:]], dim=1)
    expected = predict(unet, torch.cat([uncond, cond]))
    controls = first.on(clip_tokens), second.on(clip_tokens, scale=0.5)
    golden_cases.assert_equal(predict(unet, prompt, *controls), expected)


def test_more_tokens_than_the_prompt_has() -> None:
    unet, net, clip_tokens, prompt = tiny.unet(), style(num_token=5), draw(1, 5, 24), draw(2, 2, 768)
    with torch.no_grad():
        cond = torch.cat([prompt[1:], net(clip_tokens)], dim=1)
    uncond = prompt[:1, [0, 1, 1, 0, 1, 0, 1]]
    expected = predict(unet, torch.cat([uncond, cond]))
    golden_cases.assert_equal(predict(unet, prompt, net.on(clip_tokens)), expected)


def test_outside_its_window_there_are_no_tokens() -> None:
    unet, net, clip_tokens, prompt = tiny.unet(), style(), draw(1, 5, 24), draw(2, PROMPT, 768)
    lengths: list[int] = []
    latents = draw(1, 4, 8, 8).repeat(2, 1, 1, 1)

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        lengths.append(kwargs["encoder_hidden_states"].shape[1])

    control = net.on(clip_tokens, start=0.25, end=0.75)
    with torch.no_grad(), ck.attach(unet, control, num_steps=4) as run:
        handle = unet.register_forward_pre_hook(note, with_kwargs=True)
        for timestep in (900, 600, 300, 1):
            unet(latents, timestep, prompt)
        handle.remove()
        row = run.report().rows[0]
    assert lengths == [PROMPT, PROMPT + 3, PROMPT + 3, PROMPT]
    assert (row.applied, row.counts) == (2, {"forward": 1})


def test_one_picture_per_prompt() -> None:
    unet, net, clip_tokens, prompt = tiny.unet(), style(), draw(2, 5, 24), draw(4, PROMPT, 768)
    with torch.no_grad():
        cond = torch.cat([prompt[2:], net(clip_tokens)], dim=1)
    uncond = torch.cat([prompt[:2], prompt[:2, -3:]], dim=1)
    expected = predict(unet, torch.cat([uncond, cond]), rows=2)
    found = predict(unet, prompt, net.on(clip_tokens), rows=2, branches=("uncond", "cond"))
    assert torch.equal(found, expected)
    with pytest.raises(BatchMismatch, match="3 for 2 pictures"):
        predict(unet, prompt, net.on(draw(3, 5, 24)), rows=2, branches=("uncond", "cond"))


def test_a_picture_is_read_by_an_image_encoder() -> None:
    library = import_module("transformers")
    config = library.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    encoder = tiny.randomize(library.CLIPVisionModelWithProjection(config), 4)
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    pixels = library.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})(
        picture, return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        clip_tokens = encoder(pixels).last_hidden_state
    assert clip_tokens.shape == (1, 5, 24)
    unet, net, prompt = tiny.unet(), style(), draw(1, PROMPT, 768)
    found = predict(unet, prompt, net.on(picture, encoder=encoder))
    golden_cases.assert_equal(found, predict(unet, prompt, net.on(clip_tokens)))
    wider = style(width=32)
    with pytest.raises(ParameterError, match="24 wide"):
        wider.on(picture, encoder=encoder)


def test_a_pipeline_runs_with_it() -> None:
    pipe = tiny.pipeline()
    control = style().on(draw(1, 5, 24))

    def make() -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "ab", height=64, width=64, num_inference_steps=2, generator=generator, output_type="latent"
        ).images

    before = make()
    with ck.attach(pipe, control) as run:
        inside = make()
    assert run.report().rows[0].applied == 2
    assert not torch.allclose(inside, before)
    assert torch.equal(make(), before)


# --- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_tokens_of_another_width_are_refused(family: str) -> None:
    with pytest.raises(BaseMismatch, match=r"tokens 768 wide.*needed one for .*U-Net"):
        ck.attach(tiny.unet(family), style().on(draw(1, 5, 24)))


def test_clip_tokens_of_another_shape_are_refused() -> None:
    net = style()
    with pytest.raises(HintError, match=r"\(batch, tokens, 24\)"):
        net(draw(1, 5, 25))
    with pytest.raises(HintError, match="24"):
        net.on(draw(1, 5, 25))
    with pytest.raises(HintError, match="finite"):
        net.on(torch.full((1, 5, 24), torch.nan))
    with pytest.raises(ParameterError, match="start"):
        net.on(draw(1, 5, 24), start=0.6, end=0.5)
