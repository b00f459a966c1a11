"""Uni-ControlNet against the numbers of its first implementation, through the public API; and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.uni_controlnet.checkpoint import plan
from tests import tiny
from tests.golden_cases import Case, assert_equal, load_case, manifests, names

CASES = [name for name in names("uni_controlnet") if not name.endswith("ddim_loop")]
LOOPS = names("uni_controlnet", "ddim_loop")
LOCAL = [name for name in CASES if "inject_layers" in load_case(name).config]
GLOBAL = [name for name in CASES if "global" in load_case(name).config]
WHOLE = [name for name in CASES if name in LOCAL and name in GLOBAL]


def loaded(case: Case, **options: Any) -> ck.UniControlNet:
    module = ck.load(case.weights, **{"config": case.config, **options})
    assert isinstance(module, ck.UniControlNet)
    assert module.notes == ()
    return module


def maps_of(case: Case, name: str = "local_conditions") -> dict[str, Tensor]:
    order = ["canny", "mlsd", "hed", "sketch", "openpose", "midas", "seg"]
    return dict(zip(order, case.inputs[name].split(3, dim=1), strict=True))


# --- the original's numbers -----------------------------------------------------------------------------


def test_the_kept_case_is_there() -> None:
    assert "uni_controlnet/global_adapter" in CASES


@pytest.mark.parametrize("name", GLOBAL)
@torch.no_grad()
def test_tokens_are_the_originals(name: str) -> None:
    case = load_case(name)
    module = loaded(case)
    embedding = case.inputs["global_embedding"]
    assert_equal(module.tokens(embedding), case.outputs["global_tokens"])
    zeros = case.outputs["global_tokens_of_zero"]
    assert_equal(module.tokens(torch.zeros_like(embedding[: len(zeros)])), zeros)


@pytest.mark.parametrize("name", LOCAL)
@torch.no_grad()
def test_features_and_residuals_are_the_originals(name: str) -> None:
    case = load_case(name)
    module, given = loaded(case), case.inputs
    for level, feature in enumerate(module.local.features(given["local_conditions"])):
        assert_equal(feature, case.outputs[f"local_feature_{level}"])
    context = given["context"]
    if module.has_tokens:
        context = torch.cat([context, module.tokens(given["global_embedding"])], dim=1)
    found = module.local(given["x"], given["t"], context, given["local_conditions"])
    expected = [case.outputs[key] for key in sorted(case.outputs) if key.startswith("control_")]
    for ours, theirs in zip((*found.skips, found.mid), expected, strict=True):
        assert ours is not None
        assert_equal(ours, theirs)


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_predicted_noise_is_the_originals_in_every_mode(name: str) -> None:
    case = load_case(name)
    module, unet = loaded(case), ck.unet(case.weights, case.config)
    given, config = case.inputs, case.config
    maps, content = maps_of(case), given["global_embedding"]
    only = list(maps)[config["only_condition"]]
    local, whole = {"local_scale": config["local_strength"]}, {"global_scale": config["global_strength"]}
    ways: dict[str, ck.Control] = {
        "eps_uni": module.on(maps, content=content),
        "eps_uni_strengths": module.on(maps, content=content, **local, **whole),
        "eps_uni_partial": module.on(
            {only: maps_of(case, "local_conditions_partial")[only]}, content=torch.zeros_like(content)
        ),
        "eps_local": module.on(maps),
        "eps_global": module.on({}, content=content, **whole),
    }
    for output, control in ways.items():
        with ck.attach(unet, control):
            found = unet(given["x"], given["t"], given["context"]).sample
        assert_equal(found, case.outputs[output])
    assert_equal(unet(given["x"], given["t"], given["context"]).sample, case.outputs["eps_plain"])


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("way", ["cfg", "nocfg"])
@torch.no_grad()
def test_whole_sampling_is_the_originals(name: str, way: str) -> None:
    case = load_case(name)
    module, unet = loaded(case), ck.unet(case.weights, case.config)
    given, config = case.inputs, case.config
    scheduler = tiny.scheduler(timestep_spacing="leading")
    scheduler.set_timesteps(config["steps"])
    assert torch.equal(scheduler.timesteps, case.outputs["timesteps"])
    scales = {"local_scale": config["local_strength"], "global_scale": config["global_strength"]}
    control = module.on(maps_of(case), content=given["global_embedding"], **(scales if way == "cfg" else {}))
    x = given["x_T"]
    with ck.attach(unet, control, scheduler=scheduler) as run:
        for index, t in enumerate(scheduler.timesteps):
            if way == "cfg":
                both = torch.cat([given["uncond_context"], given["context"]])
                uncond, cond = unet(torch.cat([x, x]), t, both).sample.chunk(2)
                noise = uncond + config["cfg_scale"] * (cond - uncond)
            else:
                noise = unet(x, t, given["context"]).sample
            x = scheduler.step(noise, t, x).prev_sample
            assert_equal(x, case.outputs[f"{way}_x_{index:02d}"], 1e-4)
    assert run.report().rows[0].counts == {"hint": 1, "forward": config["steps"]}


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_saved_here_and_saved_back_it_is_the_same(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    module = loaded(case)
    again = ck.load(module.save(tmp_path / "ours"))
    assert isinstance(again, ck.UniControlNet)
    assert again.notes == ()
    assert (again.has_local, again.has_tokens) == (name in LOCAL, name in GLOBAL)
    assert again.config_entries() == module.config_entries()
    for key, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    if name in GLOBAL:
        embedding = case.inputs["global_embedding"]
        assert torch.equal(again.tokens(embedding), module.tokens(embedding))
    info = ck.inspect(tmp_path / "ours")
    assert (info.kind, info.layout, info.loadable) == ("uni-controlnet", "diffusers", True)

    original = {key: t for key, t in case.weights.items() if key.startswith(("local_", "global_"))}
    back = ck.load(module.save(tmp_path / "back.safetensors", layout="original"), config=case.config)
    state = back.original_state()
    assert set(state) == set(original)
    assert all(torch.equal(state[key], tensor) for key, tensor in original.items())


@pytest.mark.parametrize("name", WHOLE)
def test_each_half_loads_from_a_file_of_its_own(name: str) -> None:
    case = load_case(name)
    local = ck.load(case.part("local_adapter."), config=case.config)
    content = ck.load(case.part("global_adapter."), config=case.config)
    assert isinstance(local, ck.UniControlNet)
    assert isinstance(content, ck.UniControlNet)
    assert (local.has_local, local.has_tokens) == (True, False)
    assert (content.has_local, content.has_tokens) == (False, True)
    with pytest.raises(ck.ParameterError, match="without the half that reads content"):
        local.tokens(case.inputs["global_embedding"])
    with pytest.raises(ck.ParameterError, match="content for weights without the half"):
        local.on(maps_of(case), content=case.inputs["global_embedding"])
    with pytest.raises(ck.ParameterError, match="without the half that reads maps"):
        content.local()  # pyright: ignore[reportCallIssue]
    with pytest.raises(ck.ParameterError, match="maps for weights without the half"):
        content.on(maps_of(case))


@pytest.mark.parametrize("name", LOCAL)
def test_config_is_the_original_constructors(name: str) -> None:
    case = load_case(name)
    heads = case.config["common"]["num_heads"]
    expected = loaded(case).config_entries()
    flat = {**case.config["common"], "inject_layers": case.config["inject_layers"], "local_channels": 21}
    nested = {"local_control_config": {"target": "models.local_adapter.LocalAdapter", "params": flat}}
    for config in (flat, nested, {"model": {"params": nested}}, {"num_heads": heads}):
        assert loaded(case, config=config).config_entries() == expected
    with pytest.raises(ck.ConfigError, match="no heads"):
        ck.load(case.weights)
    wrong: list[dict[str, Any]] = [
        {"num_heads": heads, "model_channels": 48},
        {"num_heads": heads, "inject_channels": [1, 2, 3, 4]},
        {"num_heads": heads, "local_channels": 24},
        {"num_heads": heads, "inject": True},
        {"num_heads": 7},
    ]
    for config in wrong:
        with pytest.raises(ck.ConfigError):
            ck.load(case.weights, config=config)
    with pytest.raises(ck.Unsupported):
        ck.load(case.weights, config={"num_heads": heads, "use_scale_shift_norm": True})


def test_config_of_the_global_half_is_checked_too() -> None:
    case = load_case("uni_controlnet/global_adapter")
    for config in (None, {"in_dim": 64, "channel_mult": [2, 4]}, {"global": {"in_dim": 64}}):
        assert loaded(case, config=config).has_tokens
    for config in ({"in_dim": 32}, {"channel_mult": [2, 8]}, {"global": {"dim": 64}}):
        with pytest.raises(ck.ConfigError):
            ck.load(case.weights, config=config)
    without = {key: tensor for key, tensor in case.weights.items() if not key.endswith("norm2.bias")}
    with pytest.raises(ck.Incomplete, match=r"tokens\.norm2\.bias"):
        ck.load(without)


def published() -> list[str]:
    return [name for name in manifests() if name.startswith("uni_controlnet")]


@pytest.mark.parametrize("name", published())
def test_published_sizes_are_read_without_a_key_left_over(name: str) -> None:
    keys = json.loads(manifests()[name].read_text())["keys"]
    shapes = {key: tuple(shape) for key, shape in keys.items()}
    planned = plan("uni-original", shapes, None, name)
    with torch.device("meta"):
        module = planned.build()
    assert module.base == "sd1"
    for target, tensor in module.state_dict().items():
        assert shapes[planned.names[target]] == tuple(tensor.shape)
    rest = set(shapes) - {planned.names[target] for target in module.state_dict()}
    assert all(key.startswith(tuple(planned.beside)) for key in rest)
