"""The noisy classifier and the pixel U-Net: the original's numbers, what shapes tell, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.noisy_classifier import NoisyClassifier, PixelUNet, load_pixel_unet
from controlkit.errors import (
    ConfigError,
    HintError,
    Incomplete,
    NonFinite,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from tests import golden_cases
from tests.adapters.noisy_classifier.by_hand import evaluate
from tests.adapters.noisy_classifier.networks import SHAPES, WAYS, classifier, settings, unet

CASES = golden_cases.names("classifier_guidance", "classifier_")
POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
TIMES = torch.tensor([3.25, 812.0])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the original's numbers ---------------------------------------------------------------------------


def test_the_kept_case_is_there() -> None:
    assert "classifier_guidance/classifier_adaptive" in CASES


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradient_are_those_of_the_original(name: str) -> None:
    case = golden_cases.load_case(name)
    net = ck.load(case.weights, config=case.config["classifier"])
    assert isinstance(net, NoisyClassifier)
    x, t, y = case.inputs["x"], case.inputs["t"], case.inputs["y"]
    logits = net(x, t)
    golden_cases.assert_equal(logits, case.outputs["logits"])
    golden_cases.assert_equal(net(x, case.inputs["t_float"]), case.outputs["logits_t_float"])
    golden_cases.assert_equal(logits.log_softmax(-1), case.outputs["log_probs"])
    control = net.on(y, scale=case.config["classifier_scale"])
    noisy = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(control.phi(noisy, control.y, t).sum(), noisy)
    golden_cases.assert_equal(gradient * case.config["classifier_scale"], case.outputs["cond_grad"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_network_computes_what_its_tensors_say(shape: str, way: str) -> None:
    x = draw(2, 3, 16, 16)
    pool = POOLS[(len(shape) + len(way)) % 4]
    net = classifier(shape, way, pool=pool)
    config = settings(shape, way, pool=pool)
    golden_cases.assert_equal(net(x, TIMES), evaluate(net.state_dict(), config, x, TIMES))
    labels = torch.tensor([0, 4])
    denoiser = unet(shape, way)
    expected = evaluate(denoiser.state_dict(), config, x, TIMES, labels)
    golden_cases.assert_equal(denoiser(x, TIMES, labels), expected)


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_computes_what_its_tensors_say(pool: str) -> None:
    x = draw(2, 3, 16, 16)
    net = classifier(pool=pool)
    expected = evaluate(net.state_dict(), settings("two levels", "published", pool=pool), x, TIMES)
    golden_cases.assert_equal(net(x, TIMES), expected)


def test_the_unet_of_the_guided_loops_is_the_original() -> None:
    if "classifier_guidance/guided_loops" not in golden_cases.names("classifier_guidance"):
        pytest.skip("needs CONTROLKIT_GOLDEN")
    case = golden_cases.load_case("classifier_guidance/guided_loops")
    weights = {name.removeprefix("unet."): part for name, part in case.part("unet.").items()}
    net: Any = ck.unet(weights, case.config["unet"])
    for run in ("p", "ddim_eta"):
        before = [case.inputs["x_T"], *case.outputs[f"{run}_sample"]]
        outputs, times = case.outputs[f"{run}_model_output"], case.outputs[f"{run}_model_t"]
        for x, output, time in zip(before, outputs, times, strict=False):
            golden_cases.assert_equal(net(x, time, case.inputs["y"]), output)


# --- what shapes tell ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_tell_all_but_heads_and_their_order(shape: str, way: str) -> None:
    told = {"num_head_channels": 16, "use_new_attention_order": way == "plain"}
    x = draw(1, 3, 16, 16, seed=1)
    for pool in POOLS:
        net = classifier(shape, way, pool=pool)
        loaded = ck.load(net.state_dict(), config=told)
        assert isinstance(loaded, NoisyClassifier)
        assert torch.equal(loaded(x, TIMES[:1]), net(x, TIMES[:1]))
    denoiser = unet(shape, way, num_classes=None)
    built = load_pixel_unet(denoiser.state_dict(), told)
    assert torch.equal(built(x, TIMES[:1]), denoiser(x, TIMES[:1]))


def test_heads_of_64_channels_are_taken_where_nothing_says_otherwise_and_it_is_said() -> None:
    net = classifier(num_head_channels=64, model_channels=64)
    with pytest.warns(ck.ControlKitWarning, match="64 channels were assumed"):
        loaded = ck.load(net.state_dict())
    assert loaded.config.num_head_channels == 64
    narrow = classifier(num_head_channels=16, model_channels=32)
    with pytest.raises(ConfigError, match="num_head_channels"):
        ck.load(classifier("half first", num_head_channels=16).state_dict())
    assert ck.inspect(narrow.state_dict()).config["num_heads"] is None


def test_published_unets_without_heads_of_64_are_known() -> None:
    from controlkit.adapters.noisy_classifier.unet import infer_unet

    def entries(**config: Any) -> dict[str, Any]:
        sizes: dict[str, Any] = {"in_channels": 3, "num_classes": None, "out_channels": 6, **config}
        from controlkit.adapters.noisy_classifier import PixelUNetConfig

        with torch.device("meta"):
            net = PixelUNet(PixelUNetConfig(use_scale_shift_norm=True, resblock_updown=True, **sizes))
        return infer_unet({name: tuple(part.shape) for name, part in net.state_dict().items()}, None, "")[0]

    four = entries(model_channels=256, num_res_blocks=2, channel_mult=(1, 1, 2, 3, 4), num_heads=4,
                   attention_resolutions=(4, 8, 16))  # fmt: skip
    assert four["num_heads"] == 4
    assert "num_head_channels" not in four
    new = entries(model_channels=192, num_res_blocks=3, channel_mult=(1, 2, 3, 4), num_head_channels=64,
                  attention_resolutions=(2, 4, 8))  # fmt: skip
    assert new["use_new_attention_order"]
    assert new["num_head_channels"] == 64


def test_flags_of_the_originals_scripts_are_read() -> None:
    config = {
        "image_size": 16,
        "classifier_width": 64,
        "classifier_depth": 1,
        "classifier_attention_resolutions": "8",
        "classifier_use_scale_shift_norm": True,
        "classifier_resblock_updown": True,
        "classifier_pool": "attention",
        "classifier_use_fp16": False,
        "num_head_channels": 16,
    }
    net = classifier(pool="attention")
    loaded = ck.load(net.state_dict(), config=config)
    assert loaded.config == net.config
    with pytest.raises(ConfigError, match="image_size"):
        ck.load(net.state_dict(), config={"classifier_attention_resolutions": "8"})
    with pytest.raises(ConfigError, match="classifier_color"):
        ck.load(net.state_dict(), config={"num_head_channels": 16, "classifier_color": 1})


WHOLE_CALL = ("image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks",
              "attention_resolutions", "channel_mult", "pool")  # fmt: skip
SAMPLING: dict[str, Any] = {
    "classifier_width": 64,
    "classifier_depth": 1,
    "classifier_attention_resolutions": "8,4",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "adaptive",
    "classifier_scale": 1.0,
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "attention_resolutions": "8",
    "channel_mult": "1,2",
    "class_cond": True,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "clip_denoised": True,
    "use_ddim": False,
}


@pytest.mark.parametrize("pool", ["adaptive", "spatial_v2"])
def test_a_whole_call_without_heads_means_one_head_as_does_minus_one(pool: str) -> None:
    net = classifier(num_head_channels=None, pool=pool)
    entries = {"in_channels": 3, "out_channels": 7, **settings("two levels", "published", pool=pool)}
    call = {key: entries[key] for key in WHOLE_CALL}
    x = draw(1, 3, 16, 16)
    for config in (call, {"num_head_channels": -1}, {**call, "num_head_channels": -1}):
        loaded = ck.load(net.state_dict(), config=config)
        assert isinstance(loaded, NoisyClassifier)
        assert torch.equal(loaded(x, TIMES[:1]), net(x, TIMES[:1]))
        assert loaded.notes == ()


def test_flags_of_the_sampling_script_are_read_for_each_of_its_networks() -> None:
    shape = {"attention_resolutions": (2, 4)}
    net = classifier(num_head_channels=64, **shape)
    assert ck.load(net.state_dict(), config=SAMPLING).config.num_head_channels == 64
    sizes: dict[str, Any] = {"model_channels": 32, "num_res_blocks": 2}
    denoiser = unet(way="plain", num_head_channels=None, num_heads=4, use_new_attention_order=False, **sizes)
    loaded: Any = ck.unet(denoiser.state_dict(), SAMPLING)
    x, label = draw(1, 3, 16, 16), torch.tensor([2])
    assert torch.equal(loaded(x, TIMES[:1], label), denoiser(x, TIMES[:1], label))


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_it_is_saved_and_read_back(layout: Any, tmp_path: Path) -> None:
    net = classifier("half first", "plain", pool="attention")
    place = net.save(tmp_path / ("net" if layout == "diffusers" else "net.safetensors"), layout=layout)
    told = {"num_head_channels": 16, "use_new_attention_order": True}
    loaded = ck.load(place, config=None if layout == "diffusers" else told)
    assert loaded.config == net.config
    assert all(torch.equal(part, loaded.state_dict()[name]) for name, part in net.state_dict().items())
    info = ck.inspect(place)
    assert (info.kind, info.layout, info.base) == ("classifier", "guided-diffusion", "other")


def test_half_precision_follows_float32() -> None:
    net = classifier()
    x = draw(2, 3, 16, 16)
    exact = net(x, TIMES)
    half = ck.load(net.state_dict(), config={"num_head_channels": 16}, dtype=torch.bfloat16)
    assert golden_cases.relative_error(half(x, TIMES).float(), exact) < 0.05


@pytest.mark.parametrize("size", [(15, 16), (15, 15)])
def test_convolutions_that_halve_take_odd_sizes(size: tuple[int, int]) -> None:
    x = draw(2, 3, *size)
    net = classifier("half first", "plain", pool="attention")
    config = settings("half first", "plain", pool="attention")
    golden_cases.assert_equal(net(x, TIMES), evaluate(net.state_dict(), config, x, TIMES))
    one = draw(2, 3, 1, 1)
    assert classifier("half first", "plain")(one, TIMES).shape == (2, 7)
    with pytest.raises(HintError, match="at least 4"):
        classifier("half first")(one, TIMES)
    with pytest.raises(HintError, match="16 a side"):
        classifier("half first", pool="attention")(x, TIMES)


# --- what is refused ----------------------------------------------------------------------------------


def test_pictures_that_do_not_fit_are_refused() -> None:
    net = classifier(pool="attention")
    with pytest.raises(HintError, match="16 a side"):
        net(draw(1, 3, 8, 32), TIMES[:1])
    with pytest.raises(HintError, match="4 channels"):
        net(draw(1, 4, 16, 16), TIMES[:1])
    assert classifier()(draw(1, 3, 24, 40), TIMES[:1]).shape == (1, 7)
    with pytest.raises(HintError, match="multiples of 2"):
        unet()(draw(1, 3, 15, 16), TIMES[:1], torch.tensor([0]))


def test_labels_are_needed_exactly_where_the_network_has_them() -> None:
    x = draw(1, 3, 16, 16)
    with pytest.raises(ParameterError, match="labels"):
        unet()(x, TIMES[:1])
    with pytest.raises(ParameterError, match="without classes"):
        unet(num_classes=None)(x, TIMES[:1], torch.tensor([0]))
    with pytest.raises(ParameterError, match="from 0 to 4"):
        unet()(x, TIMES[:1], torch.tensor([5]))


def test_no_unet_is_half_filled() -> None:
    state, told = unet().state_dict(), {"num_head_channels": 16}
    name = "middle_block.2.out_layers.3.bias"
    with pytest.raises(Incomplete, match="missing"):
        load_pixel_unet({key: part for key, part in state.items() if key != name}, told)
    with pytest.raises(Incomplete, match="too many"):
        load_pixel_unet({**state, "extra": torch.zeros(1)}, told)
    with pytest.raises(ShapeMismatch):
        load_pixel_unet(state, {**told, "out_channels": 3})
    with pytest.raises(NonFinite):
        load_pixel_unet({**state, name: torch.full_like(state[name], torch.nan)}, told)


@pytest.mark.parametrize("door", [load_pixel_unet, ck.unet])
def test_a_unet_without_data_or_of_no_plain_tensors_is_refused(door: Any) -> None:
    state, told = unet().state_dict(), {"num_head_channels": 16}
    name = "middle_block.2.out_layers.3.bias"
    faults: dict[str, tuple[dict[str, Tensor], type[Exception], str]] = {
        "one": ({**state, name: state[name].to("meta")}, Incomplete, rf"{name}.*without data \(meta\)"),
        "all": ({key: part.to("meta") for key, part in state.items()}, Incomplete, r"without data \(meta\)"),
        "integers": ({**state, name: state[name].int()}, Unsupported, f"{name}.*int32"),
        "sparse": ({**state, name: state[name].to_sparse()}, Unsupported, "sparse"),
    }
    for tensors, error, words in faults.values():
        with pytest.raises(error, match=words):
            door(tensors, told)


@pytest.mark.parametrize("door", [load_pixel_unet, ck.unet])
def test_a_unet_has_one_dtype(door: Any) -> None:
    """That of most of its numbers, in which it can be run; narrowing that overflows is refused."""
    state, told = unet(num_classes=None).state_dict(), {"num_head_channels": 16}
    name, narrow = "middle_block.2.out_layers.3.bias", {key: part.bfloat16() for key, part in state.items()}
    stored: dict[str, tuple[dict[str, Tensor], str]] = {
        "float16": ({**state, name: state[name].half()}, "float32"),
        "float64": ({key: part.double() for key, part in state.items()}, "float32"),
        "float32": ({**narrow, name: state[name]}, "bfloat16"),
        "float8_e4m3fn": ({**state, name: state[name].to(torch.float8_e4m3fn)}, "float32"),
    }
    for others, (tensors, dtype) in stored.items():
        with pytest.warns(ck.ControlKitWarning, match=f"stored as {others} were converted to {dtype}"):
            built = door(tensors, told)
        assert {str(part.dtype) for part in built.parameters()} == {f"torch.{dtype}"}
        x = draw(1, 3, 16, 16).to(next(built.parameters()).dtype)
        assert torch.isfinite(built(x, TIMES[:1])).all()
    half = door(state, told, dtype=torch.float16)
    assert {part.dtype for part in half.parameters()} == {torch.float16}
    with pytest.raises(NonFinite, match="float16"):
        door({**state, name: torch.full_like(state[name], 1e6)}, told, dtype=torch.float16)


def test_a_damaged_encoder_is_refused_with_what_to_give() -> None:
    state = classifier().state_dict()
    with pytest.raises(ConfigError, match="blocks"):
        ck.load({name: part for name, part in state.items() if not name.startswith("input_blocks.1.")},
                config={"num_head_channels": 16})  # fmt: skip
    with pytest.raises(ConfigError, match="num_res_blocks"):
        ck.load(state, config={"num_head_channels": 16, "num_res_blocks": 3})


def test_a_silent_classifier_is_remarked_on() -> None:
    state = classifier().state_dict()
    state["out.3.weight"] = torch.zeros_like(state["out.3.weight"])
    with pytest.warns(ck.ControlKitWarning, match="guides nowhere"):
        ck.load(state, config={"num_head_channels": 16})
