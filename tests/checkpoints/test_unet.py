"""`ck.unet`: the same U-Net from its original layout, from a whole checkpoint and from diffusers' layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.checkpoints.ldm import diffusers_name, layers_of, ldm_name
from controlkit.errors import (
    ConfigError,
    Incomplete,
    KindMismatch,
    NonFinite,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from tests import tiny

PREFIX = "model.diffusion_model."
WIDE: dict[str, Any] = {
    "norm_num_groups": 32,
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": 4,
}
FAMILIES: dict[str, tuple[tiny.Family, dict[str, Any], dict[str, Any]]] = {
    "sd1": ("sd1", WIDE | {"layers_per_block": 2}, {"num_heads": 4}),
    "sd2": ("sd2", {**WIDE, "attention_head_dim": (2, 4, 4, 4)}, {"num_head_channels": 16}),
    "sdxl": (
        "sdxl",
        {
            "norm_num_groups": 32,
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": (1, 2, 2),
            "transformer_layers_per_block": (1, 2, 3),
        },
        {"num_head_channels": 32, "addition_time_embed_dim": 8, "num_classes": "sequential"},
    ),
    "inpainting": ("sd1", {**WIDE, "in_channels": 9}, {"num_heads": 4, "in_channels": 9}),
    "learned_variance": ("sd1", {**WIDE, "out_channels": 8}, {"num_heads": 4}),
    "unclip": (
        "sd2",
        {**WIDE, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 48},
        {"num_heads": 4},
    ),
}


def original(unet: Any, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The weights under their original names."""
    attends = [kind.startswith("CrossAttn") for kind in unet.config.up_block_types]
    state: dict[str, Tensor] = {}
    for name, part in unet.state_dict().items():
        renamed = name.replace("class_embedding.", "add_embedding.")
        theirs = ldm_name(renamed, layers=unet.config.layers_per_block, up_attends=attends)
        assert theirs is not None
        state[prefix + theirs] = part
    return state


@cache
def wide_state() -> Mapping[str, Tensor]:
    """Of one small network, made once; not to be changed."""
    return MappingProxyType(original(tiny.unet("sd1", **WIDE), PREFIX))


def noise(unet: Any, family: str) -> Tensor:
    base, _, _ = FAMILIES[family]
    given = tiny.inputs(base)
    latents = torch.cat([given["latents"]] * 3, dim=1)[:, : unet.config.in_channels]
    labels = torch.linspace(-1, 1, 96).view(2, 48) if unet.config.class_embed_type else None
    with torch.no_grad():
        return unet(
            latents,
            given["timesteps"],
            given["tokens"],
            class_labels=labels,
            added_cond_kwargs=given["added"],
        ).sample


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["prefix", "bare", "diffusers"])
def test_the_same_network_from_every_layout(family: str, form: str) -> None:
    base, changes, arguments = FAMILIES[family]
    model = tiny.unet(base, **changes)
    config = dict(model.config) if form == "diffusers" else arguments
    state = model.state_dict() if form == "diffusers" else original(model, PREFIX if form == "prefix" else "")
    found = ck.unet(state, config)
    assert type(found).__name__ == "UNet2DConditionModel"
    assert not found.training
    assert not any(part.requires_grad for part in found.parameters())
    assert torch.equal(noise(found, family), noise(model, family))
    for key in ("in_channels", "out_channels", "block_out_channels", "up_block_types", "cross_attention_dim"):
        assert tuple_of(found.config[key]) == tuple_of(model.config[key]), key


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_of_diffusers_serves_for_original_names_too(family: str) -> None:
    base, changes, _ = FAMILIES[family]
    model = tiny.unet(base, **changes)
    config = {**model.config, "_class_name": "UNet2DConditionModel"}
    assert torch.equal(noise(ck.unet(original(model), config), family), noise(model, family))


def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    state = dict(wide_state())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ck.MissingExtra, match="pip install diffusers"):
        ck.unet(state, {"num_heads": 4})


def tuple_of(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("family", "widths", "context", "heads"),
    [
        ("sd1", (320, 640, 1280, 1280), 768, 8),
        ("sd2", (320, 640, 1280, 1280), 1024, (5, 10, 20, 20)),
        ("sdxl", (320, 640, 1280), 2048, (5, 10, 20)),
        ("sdxl", (384, 768, 1536, 1536), 1280, (6, 12, 24, 24)),
    ],
)
def test_published_families_need_no_config(
    family: tiny.Family, widths: tuple[int, ...], context: int, heads: Any
) -> None:
    from controlkit.checkpoints.unet import _plan_original

    changes: dict[str, Any] = {
        "norm_num_groups": 32,
        "block_out_channels": widths,
        "cross_attention_dim": context,
        "layers_per_block": 2,
        "attention_head_dim": heads,
    }
    if family == "sdxl":
        attends = [False, *[True] * (len(widths) - 2), len(widths) == 3]
        kinds = tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends)
        changes |= {
            "down_block_types": kinds,
            "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
            "transformer_layers_per_block": (1, 2, 10) if len(widths) == 3 else 4,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    library: Any = tiny._diffusers()
    levels = {**tiny._LEVELS[family], **changes}
    levels.setdefault("up_block_types", ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3))
    with torch.device("meta"):
        model = library.UNet2DConditionModel(**levels)
    state = original(model)
    plan = _plan_original({name: tuple(part.shape) for name, part in state.items()}, {}, "x")
    with torch.device("meta"):
        built: Any = plan.build()
    assert {name: part.shape for name, part in built.state_dict().items()} == {
        name: part.shape for name, part in model.state_dict().items()
    }
    assert set(plan.names.values()) == set(state)
    for ours, theirs in zip(built.modules(), model.modules(), strict=True):
        assert getattr(ours, "heads", None) == getattr(theirs, "heads", None)


def test_names_there_and_back() -> None:
    for base, changes, _ in FAMILIES.values():
        model = tiny.unet(base, **changes)
        layers = model.config.layers_per_block
        state = original(model, "")
        assert layers_of({name: tuple(part.shape) for name, part in state.items()}, "x") == layers
        back = {diffusers_name(name, layers=layers) for name in state}
        assert back == {name.replace("class_embedding.", "add_embedding.") for name in model.state_dict()}
    for foreign in (
        "x",
        "out.1.weight",
        "input_blocks.0.1.norm.weight",
        "input_blocks.1.0.op.weight",
        "input_blocks.1.0.in_layers.3.weight",
        "input_blocks.1.1.qkv.weight",
        "input_blocks.3.0.in_layers.0.weight",
        "middle_block.3.norm.bias",
        "output_blocks.0.2.proj_in.weight",
    ):
        assert diffusers_name(foreign, layers=2) is None


def test_whole_files_folders_and_dtypes(tmp_path: Path) -> None:
    model = tiny.unet("sd1", **WIDE)
    state = original(model)
    beside = {
        "first_stage_model.decoder.conv_in.weight": torch.zeros(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "betas": torch.zeros(1000),
        "control_model.input_hint_block.0.weight": torch.zeros(1),
        "local_adapter.time_embed.0.weight": torch.zeros(1),
        "model_ema.decay": torch.zeros(()),
    }
    torch.save({**beside, **state}, tmp_path / "whole.ckpt")
    found = ck.unet(
        tmp_path / "whole.ckpt", {"model": {"params": {"unet_config": {"params": {"num_heads": 4}}}}}
    )
    assert torch.equal(noise(found, "sd1"), noise(model, "sd1"))

    model.save_pretrained(tmp_path / "pipe" / "unet")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    found = ck.unet(tmp_path / "pipe", subfolder="unet", dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert found.config.attention_head_dim == 4
    half = ck.unet({name: part.half() for name, part in state.items()}, {"num_heads": 4})
    assert half.dtype == torch.float16
    with pytest.warns(ck.ControlKitWarning, match="state_dict"):
        ck.unet({"state_dict": state}, {"num_heads": 4})


def test_controls_run_on_it(tmp_path: Path) -> None:
    model = tiny.unet("sd1", **WIDE)
    net = tiny.controlnet("sd1", **WIDE)
    found = ck.unet({**original(model), **net.original_state()}, {"num_heads": 4})
    given = tiny.inputs("sd1")
    with torch.no_grad():
        residuals = net(given["latents"], given["timesteps"], given["tokens"], given["control_map"])
        expected = model(
            given["latents"],
            given["timesteps"],
            given["tokens"],
            down_block_additional_residuals=residuals.skips,
            mid_block_additional_residual=residuals.mid,
        ).sample
        with ck.attach(found, net.on(given["control_map"])):
            controlled = found(given["latents"], given["timesteps"], given["tokens"]).sample
    assert torch.equal(controlled, expected)


def test_pixel_space_networks_go_to_their_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def load_pixel_unet(state: dict[str, Tensor], config: Any, what: str, **to: Any) -> torch.nn.Module:
        seen.append((state, config, what, to))
        return torch.nn.Linear(1, 1)

    reader = ModuleType("controlkit.adapters.noisy_classifier.unet")
    reader.load_pixel_unet = load_pixel_unet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "controlkit.adapters.noisy_classifier", ModuleType("parent"))
    monkeypatch.setitem(sys.modules, reader.__name__, reader)
    state = {"input_blocks.0.0.weight": torch.ones(1), "output_blocks.0.0.in_layers.0.weight": torch.ones(2)}
    assert isinstance(ck.unet(state, {"num_heads": 2}), torch.nn.Linear)
    assert seen[0][0].keys() == state.keys()
    assert seen[0][1:] == ({"num_heads": 2}, "state dict", {"dtype": None, "device": None})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda: tiny.controlnet("sd1").state_dict(), r"a ControlNet in diffusers layout.*ck\.load"),
        (lambda: tiny.t2i_adapter("sd1").state_dict(), "T2I-Adapter"),
        (lambda: {"lora_unet_down.lora_down.weight": torch.zeros(1)}, "LoRA"),
    ],
)
def test_what_is_no_denoiser_is_refused(state: Any, words: str) -> None:
    with pytest.raises(KindMismatch, match=words):
        ck.unet(state())


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (None, ConfigError, "num_heads"),
        ({"num_heads": 5}, ConfigError, "does not divide"),
        ({"num_heads": 4, "out_channels": 8}, ConfigError, "out_channels.*4, by the shapes"),
        ({"num_heads": 4, "in_channels": 9}, ConfigError, "in_channels"),
        ({"num_heads": 4, "surplus": 1}, ConfigError, "surplus"),
        ({"num_heads": 4, "num_attention_blocks": [1] * 4}, ConfigError, "num_attention_blocks.*2, 2, 2"),
        ({"num_heads": 4, "use_scale_shift_norm": True}, Unsupported, "use_scale_shift_norm"),
        ({"_class_name": "UNet3DConditionModel"}, KindMismatch, "UNet3D"),
        ({"auto_map": {}}, ConfigError, "reference to code"),
    ],
)
def test_wrong_arguments_are_refused(config: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ck.unet(dict(wide_state()), config)


def test_a_config_json_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    model = tiny.unet("sd1", **WIDE)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    for changes, words in (
        ({"down_block_types": ("Other",) * 4}, "Other"),
        ({"surplus": 1}, "surplus"),
        ({"block_out_channels": (32, 64)}, "ValueError"),
        ({"layers_per_block": 10**9}, "blocks by the config"),
        ({"attention_head_dim": None}, "TypeError|ValueError"),
    ):
        with pytest.raises(ConfigError, match=words):
            ck.unet(model.state_dict(), {**config, **changes})
    with pytest.raises(ConfigError, match="attention_head_dim"):
        ck.unet(model.state_dict())
    found = ck.unet(model.state_dict(), {"attention_head_dim": 4})
    assert torch.equal(noise(found, "sd1"), noise(model, "sd1"))
    (tmp_path / "c.json").write_text(json.dumps({"num_heads": 4}))
    ck.unet(original(model), tmp_path / "c.json")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("output_blocks.3.0.in_layers.2.weight", "up_blocks"),
        ("output_blocks.", "without"),
        ("out.2.", "conv_out"),
        ("middle_block.", "middle_block"),
        ("middle_block.1.", "middle_block"),
        ("input_blocks.1.", "blocks of the encoder"),
    ],
)
def test_a_missing_part_is_named(part: str, words: str) -> None:
    state = dict(wide_state())
    left = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX + part)}
    assert len(left) < len(state)
    with pytest.raises(Incomplete, match=words):
        ck.unet(left, {"num_heads": 4})


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        ("input_blocks.0.0.weight", ()),
        ("input_blocks.1.0.in_layers.2.weight", ()),
        ("input_blocks.1.0.in_layers.2.weight", (0,)),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", ()),
        ("out.2.weight", ()),
        ("label_emb.0.0.weight", ()),
        ("label_emb.0.0.weight", (3,)),
    ],
)
@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_tensors_of_no_possible_rank_are_refused_by_name(
    part: str, shape: tuple[int, ...], form: str
) -> None:
    state = dict(wide_state()) | {PREFIX + part: torch.zeros(shape)}
    name = diffusers_name(part, layers=1)
    assert name is not None
    if form == "diffusers":
        named = {diffusers_name(key.removeprefix(PREFIX), layers=1): tensor for key, tensor in state.items()}
        state = {str(key): tensor for key, tensor in named.items()}
    with pytest.raises(ShapeMismatch, match=name):
        ck.unet(state, {"num_heads": 4} if form == "original" else None)


def test_a_first_level_of_another_width_than_the_first_convolution_is_refused() -> None:
    name = f"{PREFIX}input_blocks.0.0.weight"
    with pytest.raises(Unsupported, match="first convolution of 64 channels"):
        ck.unet(dict(wide_state()) | {name: torch.zeros(64, 4, 3, 3)}, {"num_heads": 4})


def test_a_network_without_an_encoder_is_refused() -> None:
    state = {name: part for name, part in tiny.unet("sd1").state_dict().items() if "down_blocks" not in name}
    with pytest.raises(ck.ControlKitError):
        ck.unet(state | {"down_blocks.x": torch.zeros(1)}, {"attention_head_dim": 2})


def test_other_structure_and_bad_numbers_are_refused() -> None:
    state = dict(wide_state())
    with pytest.raises(Unsupported, match="label_emb"):
        ck.unet(state | {f"{PREFIX}label_emb.weight": torch.zeros(10, 128)}, {"num_heads": 4})
    layer = f"{PREFIX}output_blocks.2.1.transformer_blocks."
    deeper = {name.replace(f"{layer}0.", f"{layer}1."): part for name, part in state.items() if layer in name}
    with pytest.raises(Unsupported, match=r"2 layers in up_blocks\.1"):
        ck.unet(state | deeper, {"num_heads": 4})
    name = f"{PREFIX}out.2.weight"
    with pytest.raises(NonFinite, match="out"):
        ck.unet(state | {name: torch.full_like(state[name], torch.nan)}, {"num_heads": 4})
    with pytest.raises(ParameterError, match="int8"):
        ck.unet(state, {"num_heads": 4}, dtype=torch.int8)
