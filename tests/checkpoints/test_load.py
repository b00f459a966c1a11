"""What `load` returns is complete, finite, of the right kind and its own; anything else has a named error."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from controlkit.adapters.controlnet import ControlNet, ControlNetConfig
from controlkit.adapters.controlnet.config import KEYS
from controlkit.checkpoints import inspect, load
from controlkit.errors import (
    CheckpointError,
    ConfigError,
    ControlKitError,
    ControlKitWarning,
    Incomplete,
    KindMismatch,
    NonFinite,
    NotACheckpoint,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from tests import tiny
from tests.checkpoints.files import adapter, state

State = dict[str, Tensor]
BLOCK = "adapter.body.0.resnets.0.block1.weight"


def without(*names: str) -> Callable[[State], State]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def with_value(value: float) -> Callable[[State], State]:
    def change(tensors: State) -> State:
        tensors[BLOCK][0, 0, 0, 0] = value
        return tensors

    return change


def cast(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda tensors: {**tensors, BLOCK: tensors[BLOCK].to(dtype)}


FAULTS: dict[str, tuple[Callable[[State], Any], type[Exception], str]] = {
    "one_missing": (without(BLOCK), Incomplete, BLOCK),
    "bias_missing": (
        without("adapter.conv_in.bias"),
        Incomplete,
        r"9 of 10 weights, without adapter\.conv_in\.bias",
    ),
    "half_missing": (lambda s: dict(list(s.items())[::2]), Incomplete, "without"),
    "shape": (lambda s: {**s, BLOCK: s[BLOCK][:, :4]}, ShapeMismatch, r"\[8, 4, 3, 3\].*\[8, 8, 3, 3\]"),
    "transposed": (lambda s: {**s, BLOCK: torch.zeros(8, 8, 9)}, CheckpointError, "block1"),
    "nan": (with_value(float("nan")), NonFinite, "in 1 tensor: .*block1.weight"),
    "inf": (with_value(float("-inf")), NonFinite, "block1.weight"),
    "int8": (cast(torch.int8), Unsupported, "int8"),
    "bool": (cast(torch.bool), Unsupported, "bool"),
    "complex": (cast(torch.complex64), Unsupported, "complex64"),
    "sparse": (lambda s: {**s, BLOCK: s[BLOCK].to_sparse()}, Unsupported, "sparse"),
    "meta": (lambda s: {**s, BLOCK: s[BLOCK].to("meta")}, Incomplete, "meta"),
    "no_tensors": (lambda s: {"a": 1}, NotACheckpoint, "no tensor"),
    "nothing": (lambda s: {}, NotACheckpoint, "0 entries"),
    "unknown": (lambda s: {"a": torch.zeros(1)}, NotACheckpoint, "'a'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_state_dict_is_refused_by_its_fault(case: str) -> None:
    change, error, words = FAULTS[case]
    with pytest.raises(error, match=words) as caught:
        load(change(state()))
    assert len(str(caught.value)) <= 600


KINDS: dict[str, tuple[dict[str, list[int]], str, type[Exception], str]] = {
    "lora": (
        {"lora_unet_down_blocks_1_attentions_0_attn2_to_k.lora_down.weight": [4, 2048]},
        "lora",
        KindMismatch,
        "a LoRA for SDXL.*load_lora_weights",
    ),
    "peft": ({"unet.down_blocks.0.attn2.to_q.lora_A.weight": [4, 768]}, "lora", KindMismatch, "SD 1"),
    "unet": (
        {"down_blocks.0.a": [1], "up_blocks.0.a": [1], "time_embedding.linear_1.weight": [1]},
        "unet",
        KindMismatch,
        "UNet2DConditionModel",
    ),
    "ldm_unet": ({"model.diffusion_model.out.0.weight": [1]}, "unet", KindMismatch, "base model"),
    "whole": (
        {"model.diffusion_model.out.0.weight": [1], "first_stage_model.decoder.conv_in.bias": [1]},
        "checkpoint",
        KindMismatch,
        "from_single_file",
    ),
    "vae": (
        {"encoder.down_blocks.0.a": [1], "decoder.up_blocks.0.a": [1]},
        "vae",
        KindMismatch,
        "AutoencoderKL",
    ),
    "text": ({"text_model.encoder.layers.0.mlp.fc1.bias": [1]}, "text-encoder", KindMismatch, "text encoder"),
    "flux": (
        {"controlnet_blocks.0.bias": [1], "transformer_blocks.0.a": [1]},
        "controlnet-dit",
        KindMismatch,
        "U-Net",
    ),
}


@pytest.mark.parametrize("case", KINDS)
def test_other_weights_are_called_by_their_name(case: str) -> None:
    shapes, kind, error, words = KINDS[case]
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(error, match=words):
        load(tensors)
    info = inspect(tensors)
    assert (info.kind, info.loadable, info.keys) == (kind, False, len(tensors))


def test_kind_is_found_from_the_content_and_can_be_demanded(tmp_path: Path) -> None:
    path = adapter().save(tmp_path) / "diffusion_pytorch_model.safetensors"
    path = path.rename(tmp_path / "controlnet-canny.safetensors")
    assert load(path).kind == "t2i-adapter"
    with pytest.raises(KindMismatch, match="kind='t2i-adapter'"):
        load(path, kind="controlnet")
    with pytest.raises(ParameterError, match="'t2i-adapter'"):
        load(path, kind="canny")


def test_config_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = adapter().save(tmp_path)
    tiny.controlnet().save(tmp_path / "other")
    (folder / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    with pytest.raises(KindMismatch, match="ControlNetModel"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"block_out_channels": [1 << 20] * 4}, ConfigError),
        ({"layers_per_block": 1_000_000}, ConfigError),
        ({"layers_per_block": 60_000}, ConfigError),
        ({"transformer_layers_per_block": 50_000}, ConfigError),
        ({"layers_per_block": 2}, ShapeMismatch),
        ({"block_out_channels": [16, 32, 32, 65536], "norm_num_groups": 1}, ShapeMismatch),
        ({"auto_map": {"AutoModel": "x.py"}}, ConfigError),
        ({"_auto_map": "x"}, ConfigError),
        ({"trust_remote_code": True}, ConfigError),
        ({"quantization_config": {"bits": 4}}, Unsupported),
        ({"surprise": 1}, ConfigError),
    ],
)
def test_a_config_that_does_not_fit_is_refused_at_once(
    changes: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    folder = tiny.controlnet().save(tmp_path)
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**entries, **changes}))
    began = time.process_time()
    with pytest.raises(error):
        load(folder)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": 1', "\ufeff{]", "[" * 5000, '{"block_out_channels": null}']
)
def test_a_malformed_config_is_refused(text: str, tmp_path: Path) -> None:
    folder = tiny.controlnet().save(tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="config"):
        load(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
NAMES = [item.name for item in fields(ControlNetConfig)]


@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from([*NAMES, *KEYS.neutral, "_class_name", "auto_map"]), JSON, max_size=3
    )
)
def test_any_config_is_an_error_or_fits(changes: dict[str, Any]) -> None:
    net = tiny.controlnet()
    try:
        loaded = load(net.state_dict(), config={**net.config.to_dict(), **changes})
    except ControlKitError as error:
        str(error).encode()
    else:
        assert loaded.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("config", [{7: 1}, {None: 1}, {"num_heads": torch.ones(2)}, {"num_heads": [0] * 9}])
def test_a_config_of_other_than_names_and_numbers_is_an_error_of_ours(config: dict[Any, Any]) -> None:
    with pytest.raises(ControlKitError, match="config"):
        load(tiny.controlnet().state_dict(), config=config)


def test_published_families_need_no_config() -> None:
    from controlkit.adapters.controlnet.checkpoint import infer
    from tests.adapters.controlnet.test_model import PUBLISHED

    for family, (_, changes) in PUBLISHED.items():
        config = ControlNetConfig(**changes)
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in ControlNet(config).state_dict().items()}
        found = ControlNetConfig.from_dict(infer(shapes, ""))
        assert found.base == family
        assert (found.heads, found.depths, found.down_block_types) == (
            config.heads,
            config.depths,
            config.down_block_types,
        )


def test_other_families_are_asked_for_what_shapes_do_not_tell(tmp_path: Path) -> None:
    net = tiny.controlnet("sd2")
    with pytest.raises(ConfigError, match="attention_head_dim"):
        load(net.state_dict())
    given = {"attention_head_dim": [1, 2, 4, 4], "norm_num_groups": 8}
    loaded = load(net.state_dict(), config=given)
    assert isinstance(loaded, ControlNet)
    assert loaded.config.heads == net.config.heads
    (tmp_path / "c.json").write_text(json.dumps(given))
    assert load(net.state_dict(), config=tmp_path / "c.json").config == loaded.config  # type: ignore[attr-defined]


def test_a_loaded_module_is_ready_and_says_where_it_came_from(tmp_path: Path) -> None:
    folder = tiny.controlnet("sdxl").save(tmp_path / "control-canny-sdxl")
    module = load(folder)
    assert not module.training
    assert not any(part.requires_grad or part.is_meta for part in module.parameters())
    content = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    assert module.digest == hashlib.sha256(content).hexdigest()
    assert (module.source, module.base, module.condition, module.notes) == (str(folder), "sdxl", "canny", ())


def test_a_state_dict_is_copied() -> None:
    tensors = state()
    module = load(tensors)
    tensors[BLOCK].zero_()
    assert module.state_dict()[BLOCK].any()
    assert module.digest is None
    assert module.source == "state dict"


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float8_e4m3fn, torch.float16),
    ],
)
def test_dtype_is_kept_or_widened(stored: torch.dtype, loaded: torch.dtype) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in state().items()}
    if stored == loaded:
        module = load(tensors)
    else:
        with pytest.warns(ControlKitWarning, match="converted"):
            module = load(tensors)
    assert {part.dtype for part in module.parameters()} == {loaded}
    assert torch.equal(module.state_dict()[BLOCK].double(), tensors[BLOCK].double())
    assert {part.dtype for part in load(tensors, dtype=torch.float32).parameters()} == {torch.float32}


WHOLE = {"model.diffusion_model.out.2.weight": (1500, 1500), "first_stage_model.quant_conv.bias": (4,)}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("other", [torch.float32, torch.float16, torch.float8_e4m3fn, torch.int64])
def test_only_its_own_tensors_tell_its_dtype(stored: torch.dtype, other: torch.dtype) -> None:
    """A full original checkpoint holds a far larger base model beside it, in whatever dtype that has."""
    net = tiny.controlnet(block_out_channels=(32, 64, 64, 64), norm_num_groups=32)
    own = {name: part.to(stored) for name, part in net.original_state().items()}
    beside = {name: torch.zeros(shape).to(other) for name, shape in WHOLE.items()}
    heads = {"num_heads": net.config.heads[0]}
    assert sum(part.numel() for part in own.values()) < sum(part.numel() for part in beside.values())
    if stored == torch.float64:
        with pytest.warns(ControlKitWarning, match="stored as float64 were converted to float32"):
            module = load({**own, **beside}, config=heads)
    else:
        module = load({**own, **beside}, config=heads)
        assert module.notes == ()
    expected = torch.float32 if stored == torch.float64 else stored
    assert {part.dtype for part in module.parameters()} == {expected}
    assert inspect({**own, **beside}).dtype == str(other).removeprefix("torch.")


def test_of_mixed_dtypes_most_numbers_decide() -> None:
    mixed = {name: part.half() if part.ndim > 1 else part for name, part in state().items()}
    with pytest.warns(ControlKitWarning, match="weights stored as float32 were converted to float16"):
        module = load(mixed)
    assert {part.dtype for part in module.parameters()} == {torch.float16}


def test_narrowing_that_overflows_is_refused() -> None:
    with pytest.raises(NonFinite, match="bfloat16"):
        load(with_value(1e6)(state()), dtype=torch.float16)
    with pytest.raises(ParameterError, match="int8"):
        load(state(), dtype=torch.int8)


def test_what_is_unusual_is_a_warning_and_a_note() -> None:
    with pytest.warns(ControlKitWarning, match="1 tensors were not used"):
        module = load({**state(), "surplus": torch.zeros(1)})
    assert len(module.notes) == 1
    with pytest.warns(ControlKitWarning, match=r"began with 'module\.'"):
        load({f"module.{name}": tensor for name, tensor in state().items()})
    with pytest.warns(ControlKitWarning, match="state_dict"):
        load({"state_dict": state(), "epoch": 3})
    with pytest.warns(ControlKitWarning, match="no effect"):
        load(
            ControlNet(tiny.controlnet_config()).state_dict(),
            config={"attention_head_dim": 2, "norm_num_groups": 8},
        )


def test_inspect_reads_the_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny.controlnet("sdxl").half()
    folder = net.save(tmp_path)
    monkeypatch.setattr("controlkit.checkpoints.safetensors.read_tensors", pytest.fail)
    info = inspect(folder)
    assert (info.kind, info.base, info.layout, info.dtype) == ("controlnet", "sdxl", "diffusers", "float16")
    assert (info.keys, info.loadable) == (len(net.state_dict()), True)
    assert info.parameters == sum(part.numel() for part in net.parameters())
    assert info.config["cross_attention_dim"] == 2048
