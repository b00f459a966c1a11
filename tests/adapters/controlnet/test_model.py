"""The ControlNet network against diffusers' on random weights: the same bits, keys, shapes and files."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from controlkit.adapters.controlnet import ControlNet, ControlNetConfig
from controlkit.errors import (
    BatchMismatch,
    ConfigError,
    HintError,
    Incomplete,
    KindMismatch,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from tests import tiny

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "sd1": (361279120, {"cross_attention_dim": 768}),
    "sd2": (
        364228240,
        {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    ),
    "sdxl": (
        1251014160,
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
}
"""Parameters and config of the published networks; the first two counts are those of their files."""


def reference(config: ControlNetConfig) -> Any:
    """diffusers' network of the same config; without gradients, as these choose other kernels in float16."""
    entries = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    return import_module("diffusers").ControlNetModel(**entries).eval().requires_grad_(False)


def outputs(model: Any, inputs: Any) -> list[torch.Tensor]:
    """What diffusers' network answers, the middle last."""
    skips, mid = model(
        inputs["latents"],
        inputs["timesteps"],
        inputs["tokens"],
        inputs["control_map"],
        added_cond_kwargs=inputs["added"],
        return_dict=False,
    )
    return [*skips, mid]


CASES: dict[str, tuple[tiny.Family, dict[str, Any]]] = {
    "sd1": ("sd1", {}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "pooled": ("sd1", {"global_pool_conditions": True}),
    "bgr": ("sd1", {"controlnet_conditioning_channel_order": "bgr"}),
    "deep": ("sd2", {"layers_per_block": 2, "transformer_layers_per_block": (1, 2, 1, 3)}),
    "odd_time": ("sd1", {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0}),
    "small": ("sdxl", {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"}),
    "no_layers": ("sdxl", {"transformer_layers_per_block": (0, 0, 1)}),
    "divided": ("sd1", {"mid_block_scale_factor": 2.0}),
    "inpainting": ("sd1", {"in_channels": 9, "conditioning_channels": 1}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(8, 8), (9, 13)], ids=["even", "odd"])
def test_equal_to_diffusers_to_the_bit(case: str, size: tuple[int, int]) -> None:
    family, changes = CASES[case]
    net = tiny.controlnet(family, **changes)
    model = reference(net.config)
    model.load_state_dict(net.state_dict())
    inputs = dict(tiny.inputs(family, rows=3, size=size))
    inputs["latents"] = torch.randn(3, net.config.in_channels, *size)
    inputs["control_map"] = inputs["control_map"][:, : net.config.conditioning_channels]
    with torch.no_grad():
        expected = outputs(model, inputs)
        found = net(**inputs)
    for ours, theirs in zip((*found.skips, found.mid), expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_equal_to_diffusers_in_half_precision(dtype: torch.dtype) -> None:
    net = tiny.controlnet("sdxl").to(dtype)
    model = reference(net.config).to(dtype)
    model.load_state_dict(net.state_dict())
    inputs = dict(tiny.inputs("sdxl"))
    for name in ("latents", "tokens", "control_map"):
        inputs[name] = inputs[name].to(dtype)
    with torch.no_grad():
        pairs = zip([*net(**inputs).skips], outputs(model, inputs)[:-1], strict=True)
    assert all(torch.equal(ours, theirs) and ours.dtype == dtype for ours, theirs in pairs)


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_sizes_have_the_keys_and_shapes_of_diffusers(family: str) -> None:
    parameters, changes = PUBLISHED[family]
    with torch.device("meta"):
        net = ControlNet(ControlNetConfig(**changes))
        model = reference(net.config)
    ours = {name: tensor.shape for name, tensor in net.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert ours == theirs
    assert sum(shape.numel() for shape in ours.values()) == parameters
    assert net.base == family


def test_hint_once_equals_map_each_time() -> None:
    net, inputs = tiny.controlnet("sd1"), dict(tiny.inputs("sd1", rows=4))
    control_map = inputs.pop("control_map")[:1]
    with torch.no_grad():
        hint = net.encode_hint(control_map)
        once = net(**inputs, hint=hint)
        each = net(**inputs, control_map=control_map.repeat(4, 1, 1, 1))
    assert hint.shape == (1, 16, 8, 8)
    torch.testing.assert_close(once.skips, each.skips)
    torch.testing.assert_close(once.mid, each.mid)


def test_arguments_are_not_changed() -> None:
    net, inputs = tiny.controlnet("sdxl"), tiny.inputs("sdxl")
    before = copy.deepcopy(inputs)
    with torch.no_grad():
        first, second = net(**inputs), net(**inputs)
    torch.testing.assert_close(dict(inputs), dict(before), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(first.skips, second.skips, strict=True))


def test_timesteps_may_be_a_number_or_a_scalar_tensor() -> None:
    net, inputs = tiny.controlnet("sd1"), dict(tiny.inputs("sd1"))
    inputs.pop("timesteps")
    with torch.no_grad():
        a, b, c = (net(**inputs, timesteps=t) for t in (7, torch.tensor(7), torch.tensor([7, 7])))
    assert torch.equal(a.skips[3], b.skips[3])
    assert torch.equal(b.skips[3], c.skips[3])


def test_survives_pickle_and_deepcopy() -> None:
    net, inputs = tiny.controlnet("sd2"), tiny.inputs("sd2")
    with torch.no_grad():
        expected = net(**inputs).mid
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(**inputs).mid, expected)


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    net, inputs = tiny.controlnet("sdxl"), tiny.inputs("sdxl")
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(**inputs).skips, net(**inputs).skips)


def test_diffusers_loads_what_is_saved(tmp_path: Path) -> None:
    net, inputs = tiny.controlnet("sdxl"), tiny.inputs("sdxl")
    assert net.save(tmp_path / "saved") == tmp_path / "saved"
    model = import_module("diffusers").ControlNetModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(outputs(model, inputs)[-1], net(**inputs).mid)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rows": ({"control_map": torch.rand(3, 3, 64, 64)}, BatchMismatch, "3 rows"),
    "map_size": ({"control_map": torch.rand(2, 3, 60, 40)}, HintError, "64x64"),
    "map_channels": ({"control_map": torch.rand(2, 4, 64, 64)}, HintError, "alpha"),
    "no_map": ({"control_map": None}, ParameterError, "neither"),
    "both": ({"hint": torch.rand(1, 16, 8, 8)}, ParameterError, "both"),
    "timesteps": ({"timesteps": torch.zeros(5)}, BatchMismatch, "5 rows"),
    "added": ({"added": None}, ParameterError, "text_embeds"),
    "half_added": ({"added": {"text_embeds": torch.zeros(2, 1280)}}, ParameterError, "no time_ids"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_named(case: str) -> None:
    changes, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        tiny.controlnet("sdxl")(**{**tiny.inputs("sdxl"), **changes})


BAD_CONFIGS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "block": ({"down_block_types": ["AttnDownBlock2D"] * 4}, Unsupported),
    "mid": ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, Unsupported),
    "activation": ({"act_fn": "gelu"}, Unsupported),
    "class_embedding": ({"class_embed_type": "timestep"}, Unsupported),
    "only_cross": ({"only_cross_attention": [True, False, False, False]}, Unsupported),
    "scale_shift": ({"resnet_time_scale_shift": "scale_shift"}, Unsupported),
    "text_image": ({"addition_embed_type": "text_image"}, ConfigError),
    "unknown": ({"num_control_type": 6}, ConfigError),
    "other_class": ({"_class_name": "ControlNetUnionModel"}, KindMismatch),
    "levels": ({"block_out_channels": [320, 640]}, ConfigError),
    "wide": ({"block_out_channels": [1 << 20] * 4}, ConfigError),
    "negative": ({"layers_per_block": -1}, ConfigError),
    "text": ({"layers_per_block": "2"}, ConfigError),
    "flag": ({"layers_per_block": True}, ConfigError),
    "infinite": ({"norm_eps": float("inf")}, ConfigError),
    "null": ({"block_out_channels": None}, ConfigError),
    "heads": ({"attention_head_dim": 7}, ConfigError),
    "groups": ({"norm_num_groups": 33}, ConfigError),
    "order": ({"controlnet_conditioning_channel_order": "grb"}, ConfigError),
    "pooled": ({"addition_embed_type": "text_time"}, ConfigError),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_is_not_implemented_is_refused(case: str) -> None:
    changes, error = BAD_CONFIGS[case]
    with pytest.raises(error) as caught:
        ControlNetConfig.from_dict(changes)
    assert next(iter(changes)) in str(caught.value) or case == "levels"


def test_config_round_trips() -> None:
    config = tiny.controlnet_config("sdxl", global_pool_conditions=True)
    assert ControlNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_from_unet_copies_the_encoder_and_does_nothing_yet(family: tiny.Family) -> None:
    unet = tiny.unet(family)
    net = ControlNet.from_unet(unet, hint_channels=(8, 8, 16, 16))
    model = import_module("diffusers").ControlNetModel.from_unet(unet)
    assert net.training
    assert all(part.requires_grad for part in net.parameters())
    for name, tensor in model.state_dict().items():
        if not name.startswith("controlnet_cond"):
            assert torch.equal(net.state_dict()[name], tensor), name
    residuals = net.eval()(**tiny.inputs(family))
    assert not any(part.any() for part in (*residuals.skips, residuals.mid))
    unet.conv_in.weight.add_(1.0)
    assert not torch.equal(net.conv_in.weight, unet.conv_in.weight)


def test_from_unet_names_what_does_not_fit() -> None:
    unet = tiny.unet("sd1")
    state, config = unet.state_dict(), dict(unet.config)
    assert torch.equal(ControlNet.from_unet(state, config).conv_in.weight, unet.conv_in.weight)
    with pytest.raises(ParameterError, match="head count"):
        ControlNet.from_unet(state)
    with pytest.raises(ShapeMismatch, match="conv_in"):
        ControlNet.from_unet(state, {**config, "block_out_channels": (32, 32, 32, 32)})
    with pytest.raises(Incomplete, match=r"conv_in\.bias"):
        ControlNet.from_unet({k: v for k, v in state.items() if k != "conv_in.bias"}, config)
    with pytest.raises(Unsupported, match="resnet_skip_time_act"):
        ControlNet.from_unet(state, {**config, "resnet_skip_time_act": True})
