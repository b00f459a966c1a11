"""T2I-Adapters in their original layouts: every variant from its shapes, the original's numbers, and back."""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import controlkit as ck
from controlkit.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig
from controlkit.adapters.t2i_adapter import original as reader
from controlkit.checkpoints.formats import recognise
from controlkit.errors import (
    BaseMismatch,
    CheckpointError,
    ConfigError,
    ControlKitWarning,
    ShapeMismatch,
    Unsupported,
)
from tests import golden_cases, tiny

FORWARD = [name for part in ("full_", "light_", "xl_") for name in golden_cases.names("t2i_adapter", part)]
FORWARD = [name for name in FORWARD if not name.endswith("injection")]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("Adapter", {"channels": [16, 24, 32, 32], "cin": 192}),
    "gray": ("Adapter", {"channels": [16, 24, 32, 40], "cin": 64, "nums_rb": 3}),
    "one_width": ("Adapter", {"channels": [8, 8, 8, 8], "cin": 64, "nums_rb": 3}),
    "convolved": ("Adapter", {"channels": [8, 12, 12, 12], "cin": 64, "use_conv": True, "nums_rb": 1}),
    "two_levels": ("Adapter", {"channels": [8, 12], "cin": 192, "use_conv": True}),
    "five_levels": ("Adapter", {"channels": [8, 12, 12, 12, 16], "cin": 192}),
    "wide_kernel": ("Adapter", {"channels": [8, 12, 16, 16], "cin": 192, "ksize": 3}),
    "kernel_of_5": ("Adapter", {"channels": [8, 12, 16, 16], "cin": 64, "ksize": 5, "sk": False}),
    "shortcuts": ("Adapter", {"channels": [8, 8, 16, 16], "cin": 64, "sk": False}),
    "defaults": (
        "Adapter",
        {"channels": [8, 12, 16, 16], "cin": 64, "nums_rb": 3, "ksize": 3, "sk": False, "use_conv": True},
    ),
    "four_channels": ("Adapter", {"channels": [8, 12, 16, 20], "cin": 256}),
    "light": ("Adapter_light", {"channels": [8, 16, 24, 24], "cin": 192, "nums_rb": 4}),
    "light_uneven": ("Adapter_light", {"channels": [8, 16, 24, 32], "cin": 64, "nums_rb": 1}),
    "xl": ("Adapter_XL", {"channels": [8, 12, 16, 16], "cin": 768}),
    "xl_three": ("Adapter_XL", {"channels": [8, 12, 16], "cin": 256, "use_conv": True}),
    "xl_two_channels": ("Adapter_XL", {"channels": [8, 12, 16, 16], "cin": 512, "use_conv": True}),
    "xl_shortcuts": ("Adapter_XL", {"channels": [8, 8, 8, 8], "cin": 256, "sk": False, "ksize": 3}),
}
ONLY_HERE = [
    name
    for name, (_, args) in SHAPES.items()
    if args.get("use_conv") or args.get("ksize", 1) != 1 or not args.get("sk", True) or name == "light_uneven"
]
ASSUMED = ("one_width", "shortcuts", "xl_shortcuts")
"""Whose blocks form two levels as well as four, so that four are assumed with a warning."""
_DEFAULTS = {"nums_rb": 3, "ksize": 3, "sk": False, "use_conv": True}
PUBLISHED: dict[str, tuple[str, dict[str, Any], int, int, str]] = {
    "t2i_adapter_sd14_cin64": ("Adapter", {"cin": 64}, 38, 77_000_640, "sd1"),
    "t2i_adapter_sd14_cin192": ("Adapter", {"cin": 192}, 38, 77_369_280, "sd1"),
    "t2i_adapter_light_color": ("Adapter_light", {"cin": 192, "nums_rb": 4}, 80, 18_689_200, "sd1"),
    "t2i_adapter_xl_cin256": ("Adapter_XL", {"cin": 256}, 38, 77_553_600, "sdxl"),
    "t2i_adapter_variant_default_args": ("Adapter", {"cin": 64, **_DEFAULTS}, 104, 419_557_120, "sd1"),
}
"""Class, arguments, tensors and values of the files that were published, and of the class's defaults."""

TYPES = {"Adapter": "full_adapter", "Adapter_light": "light_adapter", "Adapter_XL": "full_adapter_xl"}


def config_of(kind: str, args: dict[str, Any]) -> T2IAdapterConfig:
    """The config that the original's arguments mean, written down once more."""
    factor = 16 if kind == "Adapter_XL" else 8
    light, channels = kind == "Adapter_light", args["channels"]
    return T2IAdapterConfig(
        in_channels=args["cin"] // factor**2,
        channels=tuple(channels[:-1] if light else channels),
        num_res_blocks=args.get("nums_rb", 2),
        downscale_factor=factor,
        adapter_type=TYPES[kind],
        pooling="ceil" if args.get("use_conv") else "floor",
        ksize=args.get("ksize", 1),
        sk=args.get("sk", True),
        use_conv=args.get("use_conv", False),
        last_channels=channels[-1] if light and channels[-1] != channels[-2] else None,
    )


def weights_of(name: str) -> dict[str, Tensor]:
    """Random weights of a variant, by the original's names."""
    net = tiny.randomize(T2IAdapter(config_of(*SHAPES[name])), 5)
    assert isinstance(net, T2IAdapter)
    return net.original_state()


def reference(state: dict[str, Tensor], kind: str, x: Tensor, blocks: int) -> list[Tensor]:
    """The original's computation, straight from its names."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def block(name: str, x: Tensor) -> Tensor:
        if f"{name}.in_conv.weight" in state:
            x = conv(f"{name}.in_conv", x)
        inner = conv(f"{name}.block2", F.relu(conv(f"{name}.block1", x)))
        return inner + (conv(f"{name}.skep", x) if f"{name}.skep.weight" in state else x)

    def halve(name: str, x: Tensor) -> Tensor:
        if f"{name}.down_opt.op.weight" in state:
            return conv(f"{name}.down_opt.op", x, 2)
        return F.avg_pool2d(x, 2)

    light = kind == "Adapter_light"
    x = F.pixel_unshuffle(x, 16 if kind == "Adapter_XL" else 8)
    x = x if light else conv("conv_in", x)
    count = 1 + max(int(match[1]) for name in state if (match := re.match(r"body\.(\d+)\.", name)))
    features: list[Tensor] = []
    for level in range(count if light else count // blocks):
        first = f"body.{level}" if light else f"body.{level * blocks}"
        if level == 2 if kind == "Adapter_XL" else level > 0:
            x = halve(first, x)
        if light:
            x = conv(f"{first}.in_conv", x)
            for number in range(blocks):
                x = block(f"{first}.body.{number}", x)
            x = conv(f"{first}.out_conv", x)
        else:
            for number in range(blocks):
                x = block(f"body.{level * blocks + number}", x)
        features.append(x)
    return features


# --- the original's numbers ---------------------------------------------------------------------------


def test_the_kept_case_is_there() -> None:
    assert "t2i_adapter/full_k3_skep_conv" in FORWARD


@pytest.mark.parametrize("given", ["nothing", "arguments", "class"])
@pytest.mark.parametrize("name", FORWARD)
def test_features_are_the_original_s(name: str, given: str) -> None:
    case = golden_cases.load_case(name)
    config = {"nothing": None, "arguments": case.config["args"]}.get(
        given, {"class": case.config["class"], **case.config["args"]}
    )
    net = ck.load(case.weights, config=config)
    assert isinstance(net, ck.T2IAdapter)
    assert net.notes == ()
    with torch.no_grad():
        features = net(case.inputs["hint"])
    assert len(features) == len(case.outputs)
    for number, feature in enumerate(features):
        golden_cases.assert_equal(feature, case.outputs[f"feature_{number}"])


@pytest.mark.parametrize("size", [(64, 96), (80, 208)], ids=["even", "odd"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_variant_is_known_by_its_shapes_and_computes_the_same(name: str, size: tuple[int, int]) -> None:
    kind, args = SHAPES[name]
    if name == "five_levels":
        size = (size[0] * 2, size[1] * 2)
    state = weights_of(name)
    with pytest.warns(ControlKitWarning, match="4 levels") if name in ASSUMED else nullcontext():
        net = ck.load(state, config={"nums_rb": 2} if name == "five_levels" else None)
    assert isinstance(net, ck.T2IAdapter)
    assert net.config == config_of(kind, args)
    control_map = torch.rand(2, net.config.in_channels, *size)
    with torch.no_grad():
        found = net(control_map)
        expected = reference(state, kind, control_map, args.get("nums_rb", 2))
    assert [feature.shape[1] for feature in found] == args["channels"]
    for ours, theirs in zip(found, expected, strict=True):
        golden_cases.assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("widths", "levels"),
    [
        ([96, 96, 144, 144], 2),  # the embedded model's; as four levels of one block they would fit none
        ([8, 8, 8], 3),
        ([8] * 5, 5),
        ([8] * 9, 3),
        ([8, 8, 12, 12, 16, 16], 3),
        ([8, 8, 8, 12, 12, 12], 2),
        ([8, 12], 2),
        ([8], 1),
        ([8] * 6, 0),
        ([8] * 18, 0),
    ],
)
def test_blocks_in_a_row_form_levels_or_the_config_must_say(widths: list[int], levels: int) -> None:
    shapes = {f"body.{block}.block{i}.weight": (w, w, 3, 3) for block, w in enumerate(widths) for i in (1, 2)}
    shapes["conv_in.weight"] = (widths[0], 192, 3, 3)
    if levels:
        told, assumed = reader.infer(shapes, None, "")
        assert (len(told["channels"]), assumed) == (levels, [])
        return
    with pytest.raises(ConfigError, match="nums_rb"):
        reader.infer(shapes, None, "")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_known_and_every_tensor_is_used(name: str) -> None:
    kind, changes, keys, values, base = PUBLISHED[name]
    with torch.device("meta"):
        built = T2IAdapter(config_of(kind, {"channels": [320, 640, 1280, 1280], **changes}))
    shapes = {key: tuple(part.shape) for key, part in built.original_state().items()}
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (keys, values)
    if name in golden_cases.manifests():
        info = json.loads(golden_cases.manifests()[name].read_text())
        assert shapes == {key: tuple(shape) for key, shape in info["keys"].items()}
    layout = recognise(shapes, name)
    assert (layout.kind, layout.layout) == ("t2i-adapter", "t2i-original")
    made = reader.plan(layout.layout, shapes, None, name)
    assert set(made.names.values()) == set(shapes)
    with torch.device("meta"):
        net = made.build()
    assert isinstance(net, T2IAdapter)
    assert net.config == built.config
    assert net.base == base


# --- there and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("prefix", ["", "adapter."])
def test_original_to_folder_to_original_loses_no_bit(name: str, prefix: str, tmp_path: Path) -> None:
    state = weights_of(name)
    config = {"nums_rb": SHAPES[name][1].get("nums_rb", 2)}
    net = ck.load({prefix + key: part for key, part in state.items()}, config=config)
    again = ck.load(net.save(tmp_path / "folder"))
    assert isinstance(net, T2IAdapter)
    assert isinstance(again, T2IAdapter)
    assert again.config == net.config
    back = again.original_state()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], part) for key, part in state.items())
    file = again.save(tmp_path / "adapter.safetensors", layout="original")
    assert ck.inspect(file).layout == "t2i-original"
    once_more = ck.load(file, config=config)
    assert all(torch.equal(part, once_more.state_dict()[key]) for key, part in net.state_dict().items())


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ONLY_HERE])
def test_diffusers_loads_what_it_can_hold(name: str, tmp_path: Path) -> None:
    net = ck.load(weights_of(name), config={"nums_rb": SHAPES[name][1].get("nums_rb", 2)})
    assert isinstance(net, ck.T2IAdapter)
    theirs = import_module("diffusers").T2IAdapter.from_pretrained(net.save(tmp_path))
    control_map = torch.rand(1, net.config.in_channels, 256, 256)
    with torch.no_grad():
        for a, b in zip(net(control_map), theirs(control_map), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ONLY_HERE)
def test_diffusers_refuses_what_it_cannot_hold(name: str, tmp_path: Path) -> None:
    net = ck.load(weights_of(name), config={"nums_rb": SHAPES[name][1].get("nums_rb", 2)})
    with pytest.raises(ValueError, match="adapter_type"):
        import_module("diffusers").T2IAdapter.from_pretrained(net.save(tmp_path))


@pytest.mark.parametrize("name", ONLY_HERE)
def test_a_variant_without_its_config_is_still_known(name: str) -> None:
    net = ck.load(weights_of(name), config={"nums_rb": SHAPES[name][1].get("nums_rb", 2)})
    again = ck.load(net.state_dict())
    assert again.state_dict().keys() == net.state_dict().keys()
    assert isinstance(again, T2IAdapter)
    assert isinstance(net, T2IAdapter)
    for key in ("ksize", "sk", "use_conv", "last_channels"):
        assert getattr(again.config, key) == getattr(net.config, key)


def test_the_original_folds_8_pixels_or_16_and_no_others() -> None:
    with pytest.raises(Unsupported, match="folds blocks of 4"):
        tiny.t2i_adapter(downscale_factor=4).original_state()


def test_what_a_training_run_saved_beside_it_is_left_alone() -> None:
    state = {f"adapter.{key}": part for key, part in weights_of("full").items()}
    beside = {
        f"{start}.weight": torch.rand(2) for start in ("model.diffusion_model.out.0", "cond_stage_model.x")
    }
    net = ck.load({**state, **beside})
    assert net.notes == ()
    with pytest.warns(ControlKitWarning, match="1 tensors were not used"):
        ck.load({**state, "other.weight": torch.rand(2)})


# --- odd sizes ----------------------------------------------------------------------------------------


def test_odd_sizes_are_rounded_up_in_a_run_and_down_alone() -> None:
    net = ck.load(tiny.t2i_adapter(num_res_blocks=2).original_state())
    assert isinstance(net, ck.T2IAdapter)
    unet, control_map = tiny.unet(), torch.rand(1, 3, 72, 104)
    with torch.no_grad():
        alone, up = net(control_map), net(control_map, round_up=True)
    assert [tuple(f.shape[-2:]) for f in alone] == [(9, 13), (4, 6), (2, 3), (1, 1)]
    assert [tuple(f.shape[-2:]) for f in up] == [(9, 13), (5, 7), (3, 4), (2, 2)]
    latents, prompt = torch.randn(1, 4, 9, 13), torch.randn(1, 7, 768)
    with torch.no_grad(), ck.attach(unet, net.on(control_map)) as run:
        found = unet(latents, 5, prompt).sample
    expected = unet(latents, 5, prompt, down_intrablock_additional_residuals=list(up)).sample
    assert torch.equal(found, expected)
    assert any("rounded up" in note for note in run.report().rows[0].notes)


# --- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"class": "Adapter_light"}, ConfigError, "by the tensors' names"),
        ({"class": "Adapter_XXL"}, ConfigError, "Adapter_XL"),
        ({"class": "Adapter_XL"}, ConfigError, "multiple of 256"),
        ({"width": 3}, ConfigError, "constructors do not have"),
        ({"ksize": 3}, ShapeMismatch, "block2"),
        ({"ksize": 2}, ConfigError, "odd"),
        ({"sk": False}, CheckpointError, "skep"),
        ({"use_conv": True}, CheckpointError, "downsample"),
        ({"nums_rb": 0}, ConfigError, "num_res_blocks"),
        ({"nums_rb": "2"}, ConfigError, "num_res_blocks"),
        ({"channels": 8}, ConfigError, "list of channels"),
        ({"channels": [16, 24, 32, 48]}, CheckpointError, "body.3"),
        ({"channels": [10**9] * 4}, ConfigError, "channels"),
        ({"cin": 64}, ShapeMismatch, "conv_in"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    config: dict[str, Any], error: type[CheckpointError], words: str
) -> None:
    with pytest.raises(error, match=words):
        ck.load(weights_of("full"), config=config)


def test_inputs_that_cannot_be_folded_are_refused() -> None:
    state = weights_of("full")
    state["conv_in.weight"] = torch.rand(16, 100, 3, 3)
    with pytest.raises(ConfigError, match="multiple of 64"):
        ck.load(state)


def test_a_shortcut_that_the_original_cannot_run_is_refused() -> None:
    state = weights_of("shortcuts")
    state["body.4.skep.weight"] = torch.rand(16, 8, 1, 1)
    with pytest.raises(Unsupported, match="cannot run"):
        ck.load(state)


@pytest.mark.parametrize("damage", ["conv_in.weight", "body.3.block1.weight", "body.0.block2.weight"])
def test_a_file_with_something_missing_or_flat_is_refused(damage: str) -> None:
    state = weights_of("full")
    flat = {**state, damage: torch.zeros(3)}
    del state[damage]
    for broken in (state, flat):
        with pytest.raises(CheckpointError, match=re.escape(damage.rpartition(".")[0].split(".")[-1])):
            ck.load(broken)
        assert ck.inspect(broken).kind == "t2i-adapter"


@pytest.mark.parametrize(("family", "name"), [("sd1", "xl"), ("sdxl", "full"), ("sdxl", "light")])
def test_an_adapter_for_another_base_model_is_refused(family: str, name: str) -> None:
    net = ck.load(weights_of(name))
    assert isinstance(net, ck.T2IAdapter)
    control = net.on(torch.rand(1, 3, 64, 64))
    with pytest.raises(BaseMismatch, match=r"features of .* needed .* U-Net"):
        ck.attach(tiny.unet(family), control)
