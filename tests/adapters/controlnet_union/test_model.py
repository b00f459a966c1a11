"""The ControlNet-Union network against diffusers' on random weights: numbers, keys, shapes and files."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import controlkit as ck
from controlkit.adapters.controlnet_union import ControlNetUnion, ControlNetUnionConfig
from controlkit.adapters.controlnet_union.checkpoint import plan
from controlkit.errors import (
    BatchMismatch,
    ConfigError,
    HintError,
    Incomplete,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from tests import tiny
from tests.adapters.controlnet_union.builders import reference, theirs, union
from tests.golden_cases import assert_equal, relative_error

PUBLISHED: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

CASES: dict[str, tuple[tiny.Family, dict[str, Any]]] = {
    "promax": ("sdxl", {}),
    "pro": ("sdxl", {"num_control_type": 6}),
    "sd1": ("sd1", {}),
    "pooled": ("sd1", {"global_pool_conditions": True}),
    "deep": ("sdxl", {"num_trans_layer": 3, "num_trans_head": 4, "layers_per_block": 2}),
    "one channel": ("sdxl", {"num_proj_channel": 1}),
    "odd time": ("sdxl", {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0}),
    "twelve types": ("sdxl", {"num_control_type": 12}),
}
TYPES = {"one": (3,), "two": (1, 3), "in another order": (4, 0, 2)}


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_diffusers(case: str, types: str) -> None:
    family, changes = CASES[case]
    net = union(family, **changes)
    inputs = dict(tiny.inputs(family, rows=3, size=(9, 13)))
    del inputs["control_map"]
    shades = torch.tensor([0.1, 0.5, 1.0])[:, None, None, None]  # rows that mix must show
    maps = {number: shades * torch.rand(3, 3, 72, 104) for number in TYPES[types]}
    with torch.no_grad():
        expected = theirs(reference(net), inputs, maps)
        found = net(**inputs, maps=maps)
    assert found.mid is not None
    for mine, other in zip((*found.skips, found.mid), expected, strict=True):
        assert_equal(mine, other)
        assert other.abs().max() > 1e-3


@pytest.mark.parametrize("scales", [[0.4, 1.7], [1.0, 0.0], [-1.0, 0.5], [0.3]])
def test_scales_enter_as_in_diffusers(scales: list[float]) -> None:
    net, inputs = union(), dict(tiny.inputs("sdxl"))
    control_map = inputs.pop("control_map")
    maps = dict(zip((1, 3), (control_map, 1 - control_map), strict=False))
    maps = {number: maps[number] for number in (1, 3)[: len(scales)]}
    with torch.no_grad():
        expected = theirs(reference(net), inputs, maps, scales)
        found = net(**inputs, maps=maps, scales=dict(zip(maps, scales, strict=True)))
        plain = net(**inputs, maps=maps)
    for mine, other in zip((*found.skips, found.mid), expected, strict=True):
        assert_equal(mine, other)
    assert relative_error(plain.mid, found.mid) > 0.05


def test_names_are_numbers() -> None:
    net, inputs = union(), dict(tiny.inputs("sdxl"))
    control_map = inputs.pop("control_map")
    with torch.no_grad():
        named = net(**inputs, maps={"depth": control_map, "lineart": 1 - control_map}, scales={"depth": 0.5})
        numbered = net(**inputs, maps={1: control_map, 3: 1 - control_map}, scales={1: 0.5})
        other = net(**inputs, maps={1: control_map, 2: 1 - control_map}, scales={1: 0.5})
    assert torch.equal(named.mid, numbered.mid)
    assert not torch.allclose(named.mid, other.mid)


def test_encoded_once_equals_each_time() -> None:
    net, inputs = union(), dict(tiny.inputs("sdxl", rows=4))
    one = inputs.pop("control_map")[:1]
    maps, scales = {"canny": one, "depth": 1 - one}, {"canny": 0.7, "depth": 0.2}
    with torch.no_grad():
        hint = net.encode(maps, scales)
        once = net(**inputs, hint=hint)
        rows = {name: part.repeat(4, 1, 1, 1) for name, part in maps.items()}
        each = net(**inputs, maps=rows, scales=scales)
    assert hint.features.shape == (1, 16, 8, 8)
    for mine, other in zip((*once.skips, once.mid), (*each.skips, each.mid), strict=True):
        assert_equal(mine, other)


def test_rows_kept_apart_come_out_as_each_alone() -> None:
    """diffusers mixes the rows of a batch (its attention takes the batch for the sequence); we need not."""
    net, inputs = union(), dict(tiny.inputs("sdxl", rows=2))
    control_map = inputs.pop("control_map")
    control_map[0] *= 0.1
    maps = {"canny": control_map, "depth": 1 - control_map}
    with torch.no_grad():
        apart = net(**inputs, maps=maps, keep_apart=True)
        mixed = net(**inputs, maps=maps)
        for row in range(2):
            part = {key: value[row : row + 1] for key, value in inputs.items() if key != "added"}
            part["added"] = {key: value[row : row + 1] for key, value in inputs["added"].items()}
            alone = net(**part, maps={name: each[row : row + 1] for name, each in maps.items()})
            assert_equal(apart.mid[row : row + 1], alone.mid)
            assert relative_error(mixed.mid[row : row + 1], alone.mid) > 1e-3


def test_published_sizes_have_the_keys_and_shapes_of_diffusers() -> None:
    for types in (6, 8):
        with torch.device("meta"):
            net = ControlNetUnion(ControlNetUnionConfig(**PUBLISHED, num_control_type=types))
            entries = {k: v for k, v in net.config_entries().items() if not k.startswith("_")}
            model = import_module("diffusers").ControlNetUnionModel(**entries)
        ours = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        assert net.base == "sdxl"
        built = plan("diffusers", ours, None, "file").build  # all of it is told by the shapes
        with torch.device("meta"):
            assert built().config == net.config


def test_saved_it_is_read_by_diffusers_and_by_load(tmp_path: Path) -> None:
    net, inputs = union(num_control_type=6), dict(tiny.inputs("sdxl"))
    maps = {1: inputs.pop("control_map")}
    net.save(tmp_path)
    model = import_module("diffusers").ControlNetUnionModel.from_pretrained(tmp_path)
    loaded = ck.load(tmp_path, kind="controlnet-union")
    assert isinstance(loaded, ControlNetUnion)
    assert loaded.config == net.config
    assert not loaded.notes
    assert (ck.inspect(tmp_path).kind, ck.inspect(tmp_path).base) == ("controlnet-union", "sdxl")
    with torch.no_grad():
        expected = net(**inputs, maps=maps)
        assert torch.equal(loaded(**inputs, maps=maps).mid, expected.mid)
        assert_equal(expected.mid, theirs(model, inputs, maps)[-1])


def test_loaded_without_a_config() -> None:
    net = union(layers_per_block=2)
    state = net.state_dict()
    with pytest.raises(ConfigError, match="attention heads"):
        ck.load(state)
    given = {"attention_head_dim": (1, 2, 4), "norm_num_groups": 8, "num_trans_head": 2}
    loaded = ck.load(state, config=given)
    assert isinstance(loaded, ControlNetUnion)
    assert loaded.config == net.config
    info = ck.inspect(state)
    assert (info.kind, info.layout, info.base, info.loadable) == (
        "controlnet-union",
        "diffusers",
        "sdxl",
        True,
    )


def test_the_authors_config_says_nothing_of_types(tmp_path: Path) -> None:
    net = union()
    net.save(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    entries = {key: value for key, value in entries.items() if not key.startswith("num_")}
    entries |= {"_class_name": "ControlNetModel", "mid_block_type": "UNetMidBlock2DCrossAttn"}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    loaded = ck.load(tmp_path, config={"num_trans_head": 2})
    assert isinstance(loaded, ControlNetUnion)
    assert loaded.config == net.config


def test_incomplete_files_are_refused() -> None:
    net = union()
    given = net.config_entries()
    for name in ("task_embedding", "spatial_ch_projs.bias", "transformer_layes.0.attn.in_proj_weight"):
        state = {key: value for key, value in net.state_dict().items() if key != name}
        with pytest.raises(Incomplete if name != "task_embedding" else ck.CheckpointError):
            ck.load(state, config=given)
    with pytest.raises(ShapeMismatch):
        ck.load(net.state_dict(), config={**given, "num_control_type": 6})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_trans_channel": 24}, ConfigError),
        ({"num_proj_channel": 8}, ConfigError),
        ({"num_trans_head": 3}, ConfigError),
        ({"addition_time_embed_dim": None, "addition_embed_type": None}, ConfigError),
        ({"controlnet_conditioning_channel_order": "bgr"}, Unsupported),
        ({"mid_block_type": "UNetMidBlock2D"}, Unsupported),
        ({"num_control_type": 0}, ConfigError),
    ],
)
def test_configs_that_cannot_be_built(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ControlNetUnionConfig.from_dict({**union().config_entries(), **changes})


def test_arguments_that_do_not_fit() -> None:
    net, inputs = union(num_control_type=6), dict(tiny.inputs("sdxl"))
    control_map = inputs.pop("control_map")
    for maps, scales in (({}, 1.0), ({"cany": control_map}, 1.0), ({"canny": control_map}, {"depth": 1.0})):
        with pytest.raises(ParameterError):
            net(**inputs, maps=maps, scales=scales)
    with pytest.raises(ParameterError, match=r"'cany'.*0: openpose.*3: canny, lineart.*5: segment"):
        net(**inputs, maps={"cany": control_map})
    with pytest.raises(ParameterError, match="ProMax"):
        net(**inputs, maps={"tile": control_map})
    with pytest.raises(ParameterError):
        net(**inputs, maps={6: control_map})
    with pytest.raises(ParameterError, match="both"):
        net(**inputs, maps={"canny": control_map}, hint=net.encode({"canny": control_map}))
    with pytest.raises(ParameterError, match="neither"):
        net(**inputs)
    with pytest.raises(HintError):
        net(**inputs, maps={"canny": control_map[:, :1]})
    with pytest.raises(HintError, match="8 times"):
        net(**inputs, maps={"canny": control_map[..., :32]})
    with pytest.raises(BatchMismatch):
        net(**inputs, maps={"canny": control_map.repeat(2, 1, 1, 1)})
    with pytest.raises(ParameterError, match="text_embeds"):
        net(**{**inputs, "added": None}, maps={"canny": control_map})
