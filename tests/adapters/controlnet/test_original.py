"""ControlNets as their first implementation stores them: its names, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.controlnet import ControlNet
from controlkit.adapters.controlnet.checkpoint import plan
from controlkit.adapters.controlnet.config import ControlNetConfig
from controlkit.errors import ConfigError, Incomplete, ShapeMismatch, Unsupported
from tests import tiny
from tests.adapters.controlnet.test_model import PUBLISHED

# --- families, told by their shapes ---------------------------------------------------------------------

WIDE: dict[str, Any] = {
    "norm_num_groups": 32,
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": 4,
}
FAMILIES: dict[str, tuple[tiny.Family, dict[str, Any], dict[str, Any]]] = {
    "sd1": ("sd1", WIDE, {"num_heads": 4}),
    "sd2": ("sd2", {**WIDE, "attention_head_dim": (2, 4, 4, 4)}, {"num_head_channels": 16, "num_heads": 3}),
    "sdxl": (
        "sdxl",
        {
            "norm_num_groups": 32,
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": (1, 2, 2),
            "transformer_layers_per_block": (1, 2, 3),
            "layers_per_block": 2,
        },
        {"num_head_channels": 32, "num_heads": -1, "addition_time_embed_dim": 8},
    ),
    "other_hint": (
        "sd1",
        {**WIDE, "conditioning_channels": 6, "conditioning_embedding_out_channels": (8, 24, 16)},
        {"num_heads": 4},
    ),
    "inpainting": ("sd1", {**WIDE, "in_channels": 9, "layers_per_block": 3}, {"num_heads": 4}),
    "deep": ("sd2", {**WIDE, "transformer_layers_per_block": (2, 1, 3, 2)}, {"num_heads": 4}),
    "all_attend": ("sd1", {**WIDE, "down_block_types": ("CrossAttnDownBlock2D",) * 4}, {"num_heads": 4}),
    "one_level": (
        "sd1",
        {
            "norm_num_groups": 32,
            "block_out_channels": (64,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "layers_per_block": 2,
        },
        {"num_heads": 2},
    ),
}


def original(net: ControlNet, prefix: str = "control_model.") -> dict[str, Tensor]:
    return {prefix + name.removeprefix("control_model."): part for name, part in net.original_state().items()}


@cache
def wide_state() -> Mapping[str, Tensor]:
    """Of one small network, made once; not to be changed."""
    return MappingProxyType(original(tiny.controlnet("sd1", **WIDE)))


def per_level(config: ControlNetConfig) -> ControlNetConfig:
    """The same with numbers for each level, as shapes tell them."""
    from dataclasses import replace

    attends = [kind == "CrossAttnDownBlock2D" for kind in config.down_block_types]
    attends[-1] = True
    depths = tuple(depth if attend else 1 for depth, attend in zip(config.depths, attends, strict=True))
    return replace(config, attention_head_dim=config.heads, transformer_layers_per_block=depths)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [*((family, "control_model.") for family in FAMILIES), ("sd1", ""), ("sdxl", "")],
    ids=[*FAMILIES, "sd1_bare", "sdxl_bare"],
)
@torch.no_grad()
def test_every_family_is_told_by_its_shapes(family: str, prefix: str, tmp_path: Path) -> None:
    base, changes, arguments = FAMILIES[family]
    net = tiny.controlnet(base, **changes)
    state = original(net, prefix)
    again = ck.load(state, config=arguments)
    assert isinstance(again, ControlNet)
    assert per_level(again.config) == per_level(net.config)
    assert again.notes == ()
    assert all(torch.equal(part, net.state_dict()[name]) for name, part in again.state_dict().items())
    info = ck.inspect(state)
    assert (info.kind, info.layout, info.base, info.keys) == ("controlnet", "ldm", net.base, len(state))
    assert again.save(tmp_path / "folder")
    back = ck.load(tmp_path / "folder").original_state()
    assert all(torch.equal(back[name], part) for name, part in original(net).items())
    assert len(back) == len(state)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@torch.no_grad()
def test_what_is_converted_is_read_by_diffusers(family: tiny.Family, tmp_path: Path) -> None:
    _, changes, arguments = FAMILIES[family]
    net = ck.load(original(tiny.controlnet(family, **changes)), config=arguments)
    model = import_module("diffusers").ControlNetModel.from_pretrained(net.save(tmp_path))
    # Mapped files and gradients make torch choose other kernels, which round differently.
    model.load_state_dict({name: part.clone() for name, part in model.state_dict().items()}, assign=True)
    model.requires_grad_(False)
    given = tiny.inputs(family)
    skips, mid = model(
        given["latents"],
        given["timesteps"],
        given["tokens"],
        given["control_map"],
        added_cond_kwargs=given["added"],
        return_dict=False,
    )
    found = net(**given)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.skips, skips, strict=True))
    assert torch.equal(found.mid, mid)


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("prefix", ["control_model.", ""], ids=["prefix", "bare"])
def test_published_families_need_no_config(family: str, prefix: str) -> None:
    config = ControlNetConfig(**PUBLISHED[family][1])
    with torch.device("meta"):
        state = original(ControlNet(config), prefix)
    found = plan("ldm", {name: tuple(part.shape) for name, part in state.items()}, None, "x")
    with torch.device("meta"):
        built = found.build()
    assert isinstance(built, ControlNet)
    assert per_level(built.config) == per_level(config)
    assert found.names.keys() == built.state_dict().keys()
    assert set(found.names.values()) == set(state)


def test_files_of_every_published_form(tmp_path: Path) -> None:
    net = tiny.controlnet("sd1", **WIDE)
    arguments = {"num_heads": 4}
    state = original(net)
    beside = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "betas": torch.zeros(1000),
        "posterior_mean_coef1": torch.zeros(1000),
        "sqrt_one_minus_alphas_cumprod": torch.zeros(1000),
        "log_one_minus_alphas_cumprod": torch.zeros(1000),
        "alphas_cumprod_prev": torch.zeros(1000),
        "logvar": torch.zeros(1000),
    }
    torch.save({**beside, **state}, tmp_path / "control_sd15_canny.pth")
    module = ck.load(tmp_path / "control_sd15_canny.pth", config=arguments)
    assert (module.notes, module.condition, module.base) == ((), "canny", "sd1")
    assert all(torch.equal(part, net.state_dict()[name]) for name, part in module.state_dict().items())
    assert ck.inspect(tmp_path / "control_sd15_canny.pth").kind == "controlnet"

    file = module.save(tmp_path / "control_v11p_sd15_canny.safetensors", layout="original")
    info = ck.inspect(file)
    assert (info.kind, info.layout, info.base) == ("controlnet", "ldm", "sd1")
    again = ck.load(file, config=arguments)
    assert all(torch.equal(part, net.state_dict()[name]) for name, part in again.state_dict().items())

    with pytest.warns(ck.ControlKitWarning, match="state_dict"):
        ck.load({"state_dict": state, "global_step": 3}, config=arguments)
    half = ck.load({name: part.half() for name, part in original(net, "").items()}, config=arguments)
    assert {part.dtype for part in half.parameters()} == {torch.float16}


def test_pooled_networks_are_asked_for_and_named(tmp_path: Path) -> None:
    net = tiny.controlnet("sd1", **WIDE, global_pool_conditions=True)
    with pytest.warns(ck.ControlKitWarning, match="global_average_pooling"):
        file = net.save(tmp_path / "control_v11e_sd15_shuffle.safetensors", layout="original")
    nested = {
        "model": {
            "params": {
                "global_average_pooling": True,
                "linear_start": 0.00085,
                "control_stage_config": {"target": "cldm.cldm.ControlNet", "params": {"num_heads": 4}},
            }
        }
    }
    assert ck.load(file, config=nested).config == per_number(net)  # type: ignore[attr-defined]
    with pytest.warns(ck.ControlKitWarning, match="named after shuffling, and not pooled"):
        unpooled = ck.load(file, config={"num_heads": 4})
    assert not unpooled.config.global_pool_conditions  # type: ignore[attr-defined]


def per_number(net: ControlNet) -> ControlNetConfig:
    from dataclasses import replace

    return replace(net.config, transformer_layers_per_block=net.config.depths)


def test_a_config_of_diffusers_serves_too() -> None:
    net = tiny.controlnet("sd2", **WIDE)
    assert ck.load(original(net), config=net.config.to_dict()).config == net.config  # type: ignore[attr-defined]


# --- refused --------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "hint_channels": 3,
    "model_channels": 32,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2, 2, 2],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": True,
    "legacy": False,
}


def test_arguments_that_repeat_what_shapes_tell_are_accepted(tmp_path: Path) -> None:
    state = dict(wide_state())
    more = {
        "num_res_blocks": [1, 1, 1, 1],
        "context_dim": [768],
        "transformer_depth": [1, 1, 1, 0],
        "transformer_depth_middle": 1,
        "num_classes": None,
        "use_linear_in_transformer": False,
        "disable_self_attentions": [False] * 4,
        "attention_resolutions": (1, 2, 4),
        "num_attention_blocks": [1, 2, 1, 0],  # the last level has none at all
    }
    for arguments in (
        ARGUMENTS,
        ARGUMENTS | more,
        {"common": ARGUMENTS, "latent": [8, 8]},
        {"params": ARGUMENTS},
    ):
        assert ck.load(state, config=arguments).config.heads == (4,) * 4  # type: ignore[attr-defined]
    (tmp_path / "arguments.json").write_text(json.dumps(ARGUMENTS))
    ck.load(state, config=tmp_path / "arguments.json")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ConfigError, "num_heads.*num_head_channels"),
        ({"num_heads": -1}, ConfigError, "num_heads"),
        ({"num_heads": 5}, ConfigError, "num_heads.*does not divide the width 32"),
        ({"num_head_channels": 24}, ConfigError, "num_head_channels.*does not divide"),
        ({"num_heads": 0}, ConfigError, "num_heads.*whole number"),
        ({"num_heads": True}, ConfigError, "num_heads.*whole number"),
        ({"num_heads": "4"}, ConfigError, "num_heads.*whole number"),
        ({"num_heads": 4, "model_channels": 64}, ConfigError, "model_channels.*64.*32, by the shapes"),
        ({"num_heads": 4, "channel_mult": [1, 2, 4, 4]}, ConfigError, r"channel_mult.*\[1, 2, 2, 2\]"),
        ({"num_heads": 4, "context_dim": 1024}, ConfigError, "context_dim.*768"),
        ({"num_heads": 4, "num_res_blocks": 2}, ConfigError, "num_res_blocks.*1, by"),
        ({"num_heads": 4, "num_res_blocks": [1, 2, 1, 1]}, ConfigError, "num_res_blocks"),
        ({"num_heads": 4, "attention_resolutions": [4, 2]}, ConfigError, "attention_resolutions"),
        ({"num_heads": 4, "attention_resolutions": "4,2,1"}, ConfigError, "attention_resolutions"),
        ({"num_heads": 4, "transformer_depth": 2}, ConfigError, "transformer_depth"),
        ({"num_heads": 4, "transformer_depth": [1, 2, 1, 1]}, ConfigError, "transformer_depth"),
        (
            {"num_heads": 4, "num_attention_blocks": [1, 0, 1, 1]},
            ConfigError,
            "num_attention_blocks.*1, 0, 1",
        ),
        ({"num_heads": 4, "num_attention_blocks": [1, 1]}, ConfigError, "num_attention_blocks"),
        ({"num_heads": 4, "num_attention_blocks": 1}, ConfigError, "num_attention_blocks"),
        ({"num_heads": 4, "use_linear_in_transformer": True}, ConfigError, "use_linear"),
        ({"num_heads": 4, "num_classes": "sequential"}, ConfigError, "num_classes"),
        ({"num_heads": 4, "hint_channels": 4}, ConfigError, "hint_channels.*3, by"),
        ({"num_heads": 4, "attention_head_dim": 4}, ConfigError, "attention_head_dim"),
        ({"num_heads": 4, "global_average_pooling": 1}, ConfigError, "global_average_pooling"),
        ({"num_heads": 4, "use_spatial_transformer": False}, Unsupported, "use_spatial_transformer"),
        ({"num_heads": 4, "disable_self_attentions": [True] * 4}, Unsupported, "disable_self_attentions"),
        ({"num_heads": 4, "resblock_updown": True}, Unsupported, "resblock_updown"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ck.load(dict(wide_state()), config=arguments)


def test_attentions_after_some_blocks_of_a_level_alone_are_refused() -> None:
    """What ``num_attention_blocks`` is for: such a file is whole, and no download mends it."""
    state = original(tiny.controlnet("sd1", **WIDE, layers_per_block=2))
    left = _without(state, "input_blocks.5.1.")
    words = r"no layers in down_blocks\.1\.attentions\.1.*other structure is not read"
    with pytest.raises(Unsupported, match=words):
        ck.load(left, config={"num_heads": 4})
    with pytest.raises(ConfigError, match="num_attention_blocks"):
        ck.load(left, config={"num_heads": 4, "num_attention_blocks": [2, 1, 2, 2]})


def test_conditions_beside_the_timestep_are_asked_for() -> None:
    _, changes, _ = FAMILIES["sdxl"]
    with pytest.raises(ConfigError, match="addition_time_embed_dim"):
        ck.load(original(tiny.controlnet("sdxl", **changes)), config={"num_head_channels": 32})


def _without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    left = {name: tensor for name, tensor in state.items() if part not in name}
    assert len(left) < len(state)
    return left


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("input_blocks.3.0.in_layers.2.bias", "without down_blocks"),
        ("input_blocks.2.", "blocks of the encoder"),
        ("input_hint_block.6.", "input_hint_block"),
        ("input_hint_block.6.bias", "without controlnet_cond"),
        ("zero_convs.3.", "controlnet_down_blocks.3"),
        ("middle_block_out", "controlnet_mid_block"),
        ("middle_block.1", "middle_block"),
        ("time_embed.0.weight", "time_embedding"),
    ],
)
def test_a_missing_part_is_named(part: str, words: str) -> None:
    with pytest.raises(Incomplete, match=words):
        ck.load(_without(dict(wide_state()), part), config={"num_heads": 4})


def test_networks_of_other_structure_are_refused_and_not_half_loaded() -> None:
    state = dict(wide_state())
    arguments = {"num_heads": 4}
    two = original(tiny.controlnet("sd1", **WIDE, layers_per_block=2))
    layer = "control_model.input_blocks.5.1.transformer_blocks."
    deeper = {name.replace(f"{layer}0.", f"{layer}1."): part for name, part in two.items() if layer in name}
    with pytest.raises(Unsupported, match=r"2 layers in down_blocks\.1\.attentions\.1"):
        ck.load(two | deeper, config=arguments)
    moved = {name.replace("input_blocks.2.0.op.", "input_blocks.2.0."): part for name, part in state.items()}
    with pytest.raises(Unsupported, match=r"downsampling convolutions at \[4, 6\]"):
        ck.load(moved, config=arguments)
    with pytest.raises(Unsupported, match="qkv"):
        ck.load(state | {"control_model.input_blocks.7.1.qkv.weight": torch.zeros(1)}, config=arguments)
    name = "control_model.input_blocks.1.0.emb_layers.1.weight"
    with pytest.raises(ShapeMismatch, match="time_emb_proj"):
        ck.load(state | {name: torch.cat([state[name]] * 2)}, config=arguments)
    with pytest.warns(ck.ControlKitWarning, match="1 tensors were not used"):
        ck.load(state | {"surplus": torch.zeros(1)}, config=arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_num_groups": 16}, "norm_num_groups 16"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos"),
        ({"norm_eps": 1e-6}, "norm_eps"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "channel_order 'bgr'"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type"),
        ({"attention_head_dim": (1, 2, 8, 4)}, r"\[1, 2, 8, 4\] heads"),
    ],
)
def test_what_the_original_cannot_build_is_not_saved_so(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    net = tiny.controlnet("sd1", **WIDE | changes)
    with pytest.raises(Unsupported, match=words):
        net.save(tmp_path / "x.safetensors", layout="original")
    assert not list(tmp_path.iterdir())
