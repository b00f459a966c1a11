"""Rows 19 to 24 of the fault table: weights of other things, for other bases, too few or too many."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import controlkit as ck
from controlkit.checkpoints import inspect, load
from controlkit.errors import (
    BaseMismatch,
    CheckpointError,
    Incomplete,
    KindMismatch,
    NotACheckpoint,
    ShapeMismatch,
)
from tests import tiny
from tests.checkpoints.fault_table import check, refuse
from tests.checkpoints.faults_weights import BIAS, BLOCK, State, of_shapes, packed, remarks, replaced, stored
from tests.checkpoints.files import adapter, header, pack, state, write


# L19
@check(19)
def wraps_are_taken_off_and_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("module.", "_orig_mod.", "model.", "module.model.", "state_dict."):
        with remarks(like=f"all names began with '{prefix}'"):
            module = load(packed(folder / "x.safetensors", {prefix + k: v for k, v in state().items()}))
        assert len(module.notes) == 1
        assert torch.equal(module.state_dict()[BLOCK], state()[BLOCK])
    for entry in ("state_dict", "model_state_dict", "params", "params_ema", "model"):
        torch.save({entry: state(), "epoch": 3, "optimizer": {"state": {}}}, folder / "x.pth")
        with remarks(like=f"weights taken from the entry '{entry}'"):
            load(folder / "x.pth")


@check(19)
def wraps_of_the_original_controlnet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``control_model.`` alone, and beside the base model under ``model.diffusion_model.``."""
    net = tiny.controlnet(block_out_channels=(32, 64, 64, 64), norm_num_groups=32)
    original = net.original_state()
    bare = {name.removeprefix("control_model."): tensor for name, tensor in original.items()}
    for prefix in ("", "control_model."):
        tensors = {prefix + name: tensor for name, tensor in bare.items()}
        path = packed(folder / "x.safetensors", tensors)
        assert (inspect(path).kind, inspect(path).layout) == ("controlnet", "ldm")
        found = load(path, config={"num_heads": net.config.heads[0]}).state_dict()
        assert found.keys() == net.state_dict().keys()
        assert all(torch.equal(found[name], part) for name, part in net.state_dict().items())
        tensors["model.diffusion_model.out.2.bias"] = torch.zeros(4)
        tensors["first_stage_model.decoder.conv_in.bias"] = torch.zeros(4)
        if prefix:
            assert inspect(packed(folder / "x.safetensors", tensors)).kind == "controlnet"


@check(19)
def ambiguous_wraps_are_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"params": state(), "params_ema": state(), "epoch": 3}, folder / "x.pth")
    with remarks(like="'params_ema'; there are others in 'params', which were left alone"):
        load(folder / "x.pth")


def _both(_: State) -> State:
    first = {f"adapter_a.{name}": tensor for name, tensor in state().items()}
    return {**first, **{f"b.{name}": tensor for name, tensor in state().items()}}


refuse(19, "two_sets_of_weights", stored(_both), NotACheckpoint, r"'adapter_a\.' \(a T2I-.*'b\.' \(a T2I-")

# L20
LORA_XL = {"lora_unet_down_blocks_1_attentions_0_attn2_to_k.lora_down.weight": [4, 2048]}
KINDS: dict[str, tuple[dict[str, list[int]], str]] = {
    "lora_sdxl": (LORA_XL, "a LoRA for SDXL.*load_lora_weights"),
    "lora_sd1": ({"unet.down_blocks.0.attn2.to_q.lora_A.weight": [4, 768]}, "a LoRA for SD 1.*load_lora"),
    "unet": (
        {"down_blocks.0.a": [1], "up_blocks.0.a": [1], "time_embedding.linear_1.weight": [1]},
        "a U-Net in diffusers layout.*UNet2DConditionModel",
    ),
    "unet_ldm": ({"model.diffusion_model.out.0.weight": [1]}, r"a U-Net in its original.*controlkit\.unet"),
    "whole": (
        {"model.diffusion_model.out.0.weight": [1], "first_stage_model.decoder.conv_in.bias": [1]},
        "a whole Stable Diffusion checkpoint.*from_single_file",
    ),
    "vae": ({"encoder.down_blocks.0.a": [1], "decoder.up_blocks.0.a": [1]}, "a VAE.*AutoencoderKL"),
    "vae_ldm": ({"encoder.down.0.a": [1], "decoder.up.0.a": [1]}, "a VAE.*from_single_file"),
    "text": ({"text_model.encoder.layers.0.mlp.fc1.bias": [1]}, "a text encoder"),
    "flux": ({"controlnet_blocks.0.bias": [1], "transformer_blocks.0.a": [1]}, "transformer.*for a U-Net"),
    "embedding": ({"emb_params": [1, 768]}, "textual inversion.*load_textual_inversion"),
}
for _name, (_shapes, _says) in KINDS.items():
    refuse(20, _name, of_shapes(_shapes), KindMismatch, _says)
    refuse(20, f"{_name}_as_controlnet", of_shapes(_shapes), KindMismatch, _says, kind="controlnet")
refuse(
    20,
    "t2i_as_controlnet",
    stored(dict),
    KindMismatch,
    "T2I.*needed a controlnet.*kind='t2i",
    kind="controlnet",
)
IP = {"image_proj.norm.bias": [1], "ip_adapter.1.to_k_ip.weight": [1]}
refuse(
    20,
    "ip_as_controlnet",
    of_shapes(IP),
    KindMismatch,
    "an IP-Adapter.*needed a controlnet",
    kind="controlnet",
)
refuse(
    20, "nothing_known", of_shapes({"a": [1]}), NotACheckpoint, "1 tensors of no known layout, such as 'a'"
)

# L21
FAMILIES = ("sd1", "sd2", "sdxl")
WIDTHS = {"sd1": "768", "sd2": "1024", "sdxl": "2048"}


@check(21)
def every_pair_of_bases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ControlNet of each family at the U-Net of each other, at `attach`, before anything is computed."""
    picture = np.zeros((64, 64, 3), np.uint8)
    units = {family: tiny.unet(family) for family in FAMILIES}
    for made_for in FAMILIES:
        control = tiny.controlnet(made_for).on(picture)
        for family, unit in units.items():
            if family == made_for:
                continue
            with pytest.raises(BaseMismatch) as caught, ck.attach(unit, control, num_steps=2):
                pytest.fail("attached")
            assert WIDTHS[made_for] in str(caught.value), str(caught.value)
            assert WIDTHS[family] in str(caught.value), str(caught.value)
            assert caught.value.code == "CK-L21"
    for made_for, family in (("sd1", "sdxl"), ("sdxl", "sd1")):
        control = tiny.t2i_adapter(made_for).on(picture)
        with (
            pytest.raises(BaseMismatch, match=r"features of 16 at 1/.*needed 16 at 1/") as caught,
            ck.attach(units[family], control, num_steps=2),
        ):
            pytest.fail("attached")
        assert caught.value.code == "CK-L21"
    for unit in units.values():  # as they were
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in unit.modules())


# L22
def _without(*names: str) -> Callable[[State], State]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


refuse(22, "one", stored(_without(BIAS)), Incomplete, rf"9 of 10 weights, without {BIAS}")
refuse(22, "half", stored(lambda s: dict(list(s.items())[::2])), Incomplete, "5 of 10 weights, without")


FIRST_FIVE = r", ".join(re.escape(name) for name in list(state())[:5])


def _emptied(folder: Path) -> Path:
    place = adapter().save(folder / "x")
    write(place / "diffusion_pytorch_model.safetensors", pack(header({})))
    return place


refuse(22, "all", _emptied, Incomplete, f"0 of 10 weights, without {FIRST_FIVE}; needed all")
refuse(
    22,
    "no_tensor_and_no_config",
    lambda folder: write(folder / "x.safetensors", pack(header({}))),
    NotACheckpoint,
    "no tensor in it",
    code="CK-L18",
)


@check(22)
def the_first_five_are_named_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names as long as a ControlNet has them, too."""
    net = tiny.controlnet()
    left = {name: part for name, part in net.state_dict().items() if "transformer_blocks" not in name}
    lost = [name for name in net.state_dict() if name not in left]
    with pytest.raises(Incomplete, match=f"{len(left)} of {len(left) + len(lost)} weights") as caught:
        load(left, config=net.config.to_dict())
    assert all(name in str(caught.value) for name in lost[:5])
    assert lost[5] not in str(caught.value)


@check(22)
def all_are_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor in turn alone, and every beginning of the list: an error, never half a module."""
    whole, place = state(), adapter().save(folder / "x")
    parts = [{name: whole[name]} for name in whole]
    parts += [dict(list(whole.items())[:count]) for count in range(2, len(whole))]
    for part in parts:
        packed(place / "diffusion_pytorch_model.safetensors", part)
        with pytest.raises(Incomplete, match=f"{len(part)} of 10 weights, without|no adapter.") as caught:
            load(place)
        assert caught.value.code == "CK-L22"


# L23
@check(23)
def extra_keys_are_counted_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {**state(), **{f"surplus.{number}": torch.zeros(1) for number in range(7)}}
    path = packed(folder / "x.safetensors", tensors)
    with remarks(like="7 tensors were not used, such as 'surplus.0, surplus.1"):
        assert len(load(path).notes) == 1
    with pytest.raises(
        CheckpointError, match=r"7 tensors that belong to nothing: 'surplus\.0.*strict"
    ) as caught:
        load(path, strict=True)
    assert caught.value.code == "CK-L23"
    assert load(packed(path, state()), strict=True).notes == ()


# L24
refuse(
    24,
    "one_tensor",
    stored(replaced(BLOCK, lambda t: t[:, :4].contiguous())),
    ShapeMismatch,
    rf"{BLOCK}; found shape \[8, 4, 3, 3\]; needed \[8, 8, 3, 3\]",
)
refuse(
    24, "bias", stored(replaced(BIAS, lambda t: t[:3].clone())), ShapeMismatch, r"\[3\]; needed \[8\]", BIAS
)
