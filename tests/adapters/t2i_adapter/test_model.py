"""The T2I-Adapter networks against diffusers' on random weights: the same bits, keys, shapes and files."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from controlkit.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig
from controlkit.adapters.t2i_adapter.checkpoint import infer
from controlkit.errors import ConfigError, HintError
from tests import tiny

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "gray": {"in_channels": 1, "num_res_blocks": 2},
    "light": {"adapter_type": "light_adapter", "channels": (16, 32, 64), "num_res_blocks": 3},
    "light_gray": {"adapter_type": "light_adapter", "channels": (16, 32), "in_channels": 1},
    "xl": {"adapter_type": "full_adapter_xl", "downscale_factor": 16},
    "xl_gray": {"adapter_type": "full_adapter_xl", "downscale_factor": 16, "in_channels": 1},
    "factor_4": {"downscale_factor": 4},
    "two_levels": {"channels": (16, 32)},
}

PUBLISHED: dict[str, tuple[str, T2IAdapterConfig]] = {
    "full": ("sd1", T2IAdapterConfig()),
    "gray": ("sd1", T2IAdapterConfig(in_channels=1)),
    "light": (
        "sd1",
        T2IAdapterConfig(channels=(320, 640, 1280), num_res_blocks=4, adapter_type="light_adapter"),
    ),
    "xl": ("sdxl", T2IAdapterConfig(downscale_factor=16, adapter_type="full_adapter_xl")),
}


def reference(config: T2IAdapterConfig) -> Any:
    """diffusers' network of the same config."""
    entries = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    return import_module("diffusers").T2IAdapter(**entries).eval()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(64, 64), (80, 208)], ids=["square", "odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_diffusers_to_the_bit(case: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    net = tiny.t2i_adapter("sd1", **CASES[case]).to(dtype)
    model = reference(net.config).to(dtype)
    model.load_state_dict(net.state_dict())
    control_map = torch.rand(2, net.config.in_channels, *size).to(dtype)
    with torch.no_grad():
        found, expected = net(control_map), model(control_map)
    assert isinstance(found, tuple)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_sizes_have_the_keys_and_shapes_of_diffusers(case: str) -> None:
    base, config = PUBLISHED[case]
    with torch.device("meta"):
        net, model = T2IAdapter(config), reference(config)
    ours = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert net.base == base
    assert T2IAdapterConfig.from_dict(infer(ours, "")) == config


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 4, 64, 64), "alpha"), ((3, 64, 64), "shape"), ((1, 3, 60, 64), "64x64"), ((1, 3, 0, 8), "8x8")],
)
def test_a_map_that_does_not_fit_is_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(HintError, match=words):
        tiny.t2i_adapter()(torch.zeros(shape))


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": [8, 3], "adapter_type": "light_adapter"},
        {"channels": [8, 8, 8, 9], "adapter_type": "full_adapter_xl"},
        {"adapter_type": "heavy"},
        {"channels": []},
        {"downscale_factor": 0},
        {"channels": [1.5]},
        {"style": 1},
    ],
)
def test_a_config_that_cannot_be_built_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        T2IAdapterConfig.from_dict(changes)


def test_survives_pickle_and_deepcopy_and_changes_nothing() -> None:
    net, control_map = tiny.t2i_adapter(), torch.rand(1, 3, 64, 64)
    before = control_map.clone()
    with torch.no_grad():
        expected = net(control_map)[-1]
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(control_map)[-1], expected)
    assert torch.equal(control_map, before)


@pytest.mark.parametrize("case", ["full", "light", "xl"])
def test_diffusers_loads_what_is_saved(case: str, tmp_path: Path) -> None:
    net, control_map = tiny.t2i_adapter("sd1", **CASES[case]), torch.rand(1, 3, 64, 64)
    model = import_module("diffusers").T2IAdapter.from_pretrained(net.save(tmp_path))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(net(control_map), model(control_map), strict=True))
