"""The CoAdapter fuser: the original's numbers, its members' weights and windows, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.coadapter import CoAdapterFuser, CoAdapterFuserConfig
from controlkit.adapters.style_adapter import StyleAdapter, StyleAdapterConfig
from controlkit.checkpoints.formats import recognise
from controlkit.errors import (
    BaseMismatch,
    BatchMismatch,
    CheckpointError,
    ConfigError,
    ControlKitWarning,
    HintError,
    Incomplete,
    ParameterError,
    ShapeMismatch,
)
from tests import golden_cases, tiny

CASES = golden_cases.names("t2i_adapter", "coadapter_fuser")
PROMPT = 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fuser(**changes: Any) -> CoAdapterFuser:
    """A tiny fuser for the tiny SD 1 U-Net."""
    settings = {"unet_channels": (16, 32, 32, 32), "width": 768, "num_head": 4, "n_layes": 1, **changes}
    net = tiny.randomize(CoAdapterFuser(CoAdapterFuserConfig(**settings)), 40)
    assert isinstance(net, CoAdapterFuser)
    return net


def style() -> StyleAdapter:
    config = StyleAdapterConfig(width=24, context_dim=768, num_head=2, n_layes=1, num_token=3)
    net = tiny.randomize(StyleAdapter(config), 41)
    assert isinstance(net, StyleAdapter)
    return net


CANNY, DEPTH, STYLE = tiny.t2i_adapter(in_channels=1), tiny.t2i_adapter(seed=1), style()
EDGES, DEPTHS, CLIP = torch.rand(1, 1, 64, 64), torch.rand(1, 3, 64, 64), draw(1, 5, 24)


# --- the network --------------------------------------------------------------------------------------


def test_the_kept_case_is_there() -> None:
    assert "t2i_adapter/coadapter_fuser" in CASES


@pytest.mark.parametrize("only", [True, False], ids=["heads", "all arguments"])
@pytest.mark.parametrize("name", CASES)
def test_maps_and_tokens_are_the_original_s(name: str, only: bool) -> None:
    case = golden_cases.load_case(name)
    args, inputs = case.config["args"], case.inputs
    net = ck.load(case.weights, config={"num_head": args["num_head"]} if only else args)
    assert isinstance(net, ck.CoAdapterFuser)
    assert net.notes == ()
    compared = 0
    for subset, conditions in case.config["subsets"].items():
        levels = range(len(args["unet_channels"]))
        features = {
            condition: inputs[condition]
            if condition in inputs
            else [inputs[f"{condition}.{level}"] for level in levels]
            for condition in conditions
        }
        before = {name: tensor.clone() for name, tensor in inputs.items()}
        with torch.no_grad():
            maps, tokens = net(features)
        found = {f"{subset}_map_{level}": part for level, part in enumerate(maps or ())}
        found |= {} if tokens is None else {f"{subset}_seq": tokens}
        for key, tensor in found.items():
            golden_cases.assert_equal(tensor, case.outputs[key])
        assert all(torch.equal(before[key], tensor) for key, tensor in inputs.items())
        compared += len(found)
    assert compared == len(case.outputs)


def test_the_published_file_needs_no_config() -> None:
    with torch.device("meta"):
        published = CoAdapterFuser()
    shapes = {key: tuple(part.shape) for key, part in published.state_dict().items()}
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == (59, 27_285_184)
    layout = recognise(shapes, "")
    assert (layout.kind, layout.layout) == ("coadapter-fuser", "t2i-original")
    with torch.device("meta"):
        net = layout.load_reader().plan(layout.layout, shapes, None, "").build()
    assert isinstance(net, CoAdapterFuser)
    assert (net.config, net.base) == (CoAdapterFuserConfig(), "sd1")
    narrower = {**shapes, "spatial_feat_mapping.0.1.weight": (768, 160)}
    with pytest.raises(ConfigError, match="num_head"):
        layout.load_reader().plan(layout.layout, narrower, None, "")


def test_saved_and_read_back_to_the_bit_in_both_layouts(tmp_path: Path) -> None:
    net, tokens = fuser(), draw(2, 3, 768)
    again = ck.load(net.save(tmp_path / "folder"))
    file = net.save(tmp_path / "fuser.safetensors", layout="original")
    original = ck.load(file, config={"num_head": 4})
    assert isinstance(again, CoAdapterFuser)
    assert isinstance(original, CoAdapterFuser)
    assert again.config == original.config == net.config
    with torch.no_grad():
        expected = net({"style": tokens})[1]
        for other in (again, original):
            assert torch.equal(other({"style": tokens})[1], expected)


def test_an_untrained_fuser_sums_and_says_so() -> None:
    net = CoAdapterFuser(CoAdapterFuserConfig((4, 8), 16, 4, 1)).requires_grad_(False)
    maps = [draw(1, 4, 4, 4), draw(1, 8, 2, 2)]
    found, tokens = net({"canny": maps, "depth": maps})
    assert tokens is None
    assert found is not None
    assert all(torch.equal(a, 2 * b) for a, b in zip(found, maps, strict=True))
    with pytest.warns(ControlKitWarning, match="only sums"):
        ck.load(net.state_dict(), config={"num_head": 4})


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (None, ConfigError, "num_head"),
        ({"num_head": 5}, ConfigError, "divides"),
        ({"num_head": 4, "unet_channels": [4, 8, 8]}, CheckpointError, "2"),
        ({"num_head": 4, "width": 32}, ShapeMismatch, "embedding"),
        ({"num_head": 4, "n_layes": 3}, Incomplete, "transformer_layes.1"),
        ({"num_head": 4, "heads": 3}, ConfigError, "heads"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    config: dict[str, Any] | None, error: type[CheckpointError], words: str
) -> None:
    net = fuser(unet_channels=(4, 8), width=16)
    with pytest.raises(error, match=words):
        ck.load(net.state_dict(), config=config)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"hed": draw(1, 3, 16)}, "hed"),
        ({"style": draw(1, 3, 17)}, "16"),
        ({"canny": [draw(1, 4, 4, 4)]}, "2 maps"),
        ({"canny": [draw(1, 4, 4, 4), draw(1, 9, 2, 2)]}, "4/8"),
        ({"canny": [draw(4, 4, 4), draw(1, 8, 2, 2)]}, "4/8"),
        ({"canny": [draw(2, 4, 4, 4), draw(2, 8, 2, 2)], "style": draw(1, 3, 16)}, "batches of 2, 1"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: dict[str, Any], words: str) -> None:
    with pytest.raises((HintError, ParameterError), match=words):
        fuser(unet_channels=(4, 8), width=16)(features)


def test_nothing_in_nothing_out() -> None:
    assert fuser()({}) == (None, None)


# --- in a run -----------------------------------------------------------------------------------------


def by_hand(
    unet: Any, net: CoAdapterFuser, weights: dict[str, float], latents: Tensor, prompt: Tensor, time: int
) -> Tensor:
    """A prediction with guidance, as the original composes it; a weight of 0: not there."""
    made: dict[str, Any] = {
        "canny": list(CANNY(EDGES)),
        "depth": list(DEPTH(DEPTHS)),
        "style": STYLE(CLIP),
    }
    features = {
        key: made[key] * weight if key == "style" else [level * weight for level in made[key]]
        for key, weight in weights.items()
        if weight
    }
    maps, tokens = net(features)
    uncond, cond = prompt.chunk(2)
    if tokens is not None:
        uncond = torch.cat([uncond, uncond[:, -tokens.shape[1] :]], dim=1)
        cond = torch.cat([cond, tokens.expand(len(cond), -1, -1)], dim=1)
    rows = [level.expand(len(latents), -1, -1, -1) for level in maps or ()]
    return unet(
        latents, time, torch.cat([uncond, cond]), down_intrablock_additional_residuals=rows or None
    ).sample


@pytest.mark.parametrize(
    "weights",
    [
        {"canny": 0.8, "depth": 1.3, "style": 0.7},
        {"style": 1.0, "canny": 1.0},
        {"depth": 0.5},
        {"style": 1.2},
    ],
    ids=lambda weights: "+".join(weights),
)
@torch.no_grad()
def test_weights_come_before_the_fuser_and_the_result_is_added(weights: dict[str, float]) -> None:
    unet, net, prompt = tiny.unet(), fuser(), draw(2, PROMPT, 768)
    latents = draw(1, 4, 8, 8).repeat(2, 1, 1, 1)
    bound: dict[str, Any] = {
        "canny": lambda scale: CANNY.on(EDGES, scale=scale),
        "depth": lambda scale: DEPTH.on(DEPTHS, scale=scale),
        "style": lambda scale: STYLE.on(CLIP, scale=scale),
    }
    control = net.on({key: bound[key](weight) for key, weight in weights.items()})
    expected = by_hand(unet, net, weights, latents, prompt, 5)
    with ck.attach(unet, control) as run:
        found = unet(latents, 5, prompt).sample
    assert torch.equal(found, expected)
    assert not torch.allclose(found, unet(latents, 5, prompt).sample, atol=1e-4)
    row = run.report().rows[0]
    assert row.control == f"coadapter-fuser ({', '.join(weights)})"
    assert row.counts == {"forward": 1}


@torch.no_grad()
def test_a_member_outside_its_window_is_not_seen_by_the_fuser() -> None:
    unet, net, prompt = tiny.unet(), fuser(), draw(2, PROMPT, 768)
    latents = draw(1, 4, 8, 8).repeat(2, 1, 1, 1)
    canny, pictured = CANNY.on(EDGES, end=0.5, scale=0.8), STYLE.on(CLIP, start=0.25, end=0.75)
    control = net.on({"canny": canny, "style": pictured})
    acting = [{"canny": 0.8}, {"canny": 0.8, "style": 1.0}, {"style": 1.0}, {}]
    times = (900, 600, 300, 1)
    with ck.attach(unet, control, num_steps=4) as run:
        found = [unet(latents, time, prompt).sample for time in times]
    for ours, weights, time in zip(found, acting, times, strict=True):
        assert torch.equal(ours, by_hand(unet, net, weights, latents, prompt, time))
    row = run.report().rows[0]
    assert row.counts == {"forward": 3}
    assert {"canny: acts on 2 of 4 steps", "style: acts on 2 of 4 steps"} <= set(row.notes)


@torch.no_grad()
def test_its_own_scale_and_window_are_those_of_the_whole() -> None:
    unet, net, prompt = tiny.unet(), fuser(), draw(1, PROMPT, 768)
    latents = draw(1, 4, 8, 8)
    control = net.on({"canny": CANNY.on(EDGES), "style": STYLE.on(CLIP)}, scale=0.5, end=0.5)
    maps, tokens = net({"canny": list(CANNY(EDGES)), "style": STYLE(CLIP)})
    assert maps is not None
    assert tokens is not None
    halved = [level * 0.5 for level in maps]
    longer = torch.cat([prompt, tokens * 0.5], dim=1)
    with ck.attach(unet, control, num_steps=2):
        first, second = unet(latents, 9, prompt).sample, unet(latents, 1, prompt).sample
    assert torch.equal(first, unet(latents, 9, longer, down_intrablock_additional_residuals=halved).sample)
    assert torch.equal(second, unet(latents, 1, prompt).sample)


@torch.no_grad()
def test_block_scales_and_prompt_mode_of_a_member_come_before_the_fuser() -> None:
    unet, net, prompt = tiny.unet(), fuser(), draw(1, PROMPT, 768)
    latents, factors = draw(1, 4, 8, 8), [1.0, 0.5, 2.0, 0.0]
    features = [level * factor for level, factor in zip(CANNY(EDGES), factors, strict=True)]
    maps, _ = net({"canny": features})
    assert maps is not None
    with ck.attach(unet, net.on({"canny": CANNY.on(EDGES, block_scales=factors)})):
        found = unet(latents, 9, prompt).sample
    expected = unet(latents, 9, prompt, down_intrablock_additional_residuals=list(maps)).sample
    assert torch.equal(found, expected)
    with ck.attach(unet, net.on({"canny": CANNY.on(EDGES, mode="prompt")})):
        weakened = unet(latents, 9, prompt).sample
    assert not torch.allclose(weakened, found, atol=1e-4)


@torch.no_grad()
def test_one_map_per_prompt_beside_one_style_for_all() -> None:
    unet, net, prompt = tiny.unet(), fuser(), draw(4, PROMPT, 768)
    edges, latents = torch.rand(2, 1, 64, 64), draw(2, 4, 8, 8).repeat(2, 1, 1, 1)
    maps, tokens = net({"canny": list(CANNY(edges)), "style": STYLE(CLIP).expand(2, -1, -1)})
    assert maps is not None
    assert tokens is not None
    padded = torch.cat([prompt, torch.cat([prompt[:2, -3:], tokens])], dim=1)
    rows = [level.repeat(2, 1, 1, 1) for level in maps]
    expected = unet(latents, 5, padded, down_intrablock_additional_residuals=rows).sample
    control = net.on({"canny": CANNY.on(edges), "style": STYLE.on(CLIP)})
    with ck.attach(unet, control, branches=("uncond", "cond")):
        golden_cases.assert_equal(unet(latents, 5, prompt).sample, expected)
    wrong = net.on({"canny": CANNY.on(torch.rand(3, 1, 64, 64))})
    with (
        pytest.raises(BatchMismatch, match="3 maps"),
        ck.attach(unet, wrong, branches=("uncond", "cond")),
    ):
        unet(latents, 5, prompt)


def test_a_pipeline_runs_with_it_beside_another_control() -> None:
    pipe = tiny.pipeline()
    control = fuser().on({"canny": CANNY.on(EDGES, end=0.5), "style": STYLE.on(CLIP)})
    beside = tiny.controlnet().on(DEPTHS)

    def make() -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "ab", height=64, width=64, num_inference_steps=2, generator=generator, output_type="latent"
        ).images

    before = make()
    with ck.attach(pipe, control, beside) as run:
        inside = make()
    assert [row.applied for row in run.report().rows] == [2, 2]
    assert not torch.allclose(inside, before)
    assert torch.equal(make(), before)


# --- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "none"),
        ([CANNY.on(EDGES)], "a list"),
        ({"hed": CANNY.on(EDGES)}, "does not know"),
        ({"style": CANNY.on(EDGES)}, "needed a style-adapter"),
        ({"canny": STYLE.on(CLIP)}, "needed a t2i-adapter"),
        ({"canny": CANNY}, "is bound"),
        ({"canny": 1}, "found a int"),
        ({"canny": tiny.controlnet().on(DEPTHS)}, "a controlnet"),
        ({"canny": CANNY.on(EDGES, mode="control")}, "mode='control'"),
        ({"canny": CANNY.on(EDGES, mask=torch.ones(64, 64))}, "a mask"),
    ],
)
def test_members_that_cannot_be_fused_are_refused(members: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        fuser().on(members)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_a_fuser_for_another_base_model_is_refused(family: str) -> None:
    control = fuser().on({"canny": CANNY.on(EDGES), "style": STYLE.on(CLIP)})
    with pytest.raises(BaseMismatch, match=r"tokens 768 wide, levels 16/32.*needed one for .*U-Net"):
        ck.attach(tiny.unet(family), control)


def test_a_member_for_another_base_model_is_refused() -> None:
    control = fuser().on({"canny": tiny.t2i_adapter("sdxl", in_channels=1).on(EDGES)})
    with pytest.raises(BaseMismatch, match="T2I-Adapter"):
        ck.attach(tiny.unet(), control)


def test_a_member_s_window_needs_the_steps_of_the_loop() -> None:
    control = fuser().on({"canny": CANNY.on(EDGES, end=0.5)})
    with pytest.raises(ParameterError, match="num_steps"):
        ck.attach(tiny.unet(), control)
