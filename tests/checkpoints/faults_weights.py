"""Rows 19 to 29 of the fault table: whole files with the wrong weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.checkpoints import inspect, load
from controlkit.checkpoints.save import _serialise
from controlkit.errors import (
    BaseMismatch,
    CheckpointCorrupt,
    CheckpointError,
    ControlKitWarning,
    DtypeUnsupported,
    Incomplete,
    KindMismatch,
    NonFinite,
    NotACheckpoint,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from tests import tiny
from tests.checkpoints.fault_table import Maker, check, refuse
from tests.checkpoints.files import adapter, state, write

State = dict[str, Tensor]
BLOCK = "adapter.body.0.resnets.0.block1.weight"
BIAS = "adapter.conv_in.bias"


def stored(change: Callable[[State], State], make: Callable[[], State] = state) -> Maker:
    """A safetensors file of changed weights."""
    return lambda folder: packed(folder / "x.safetensors", change(make()))


def packed(path: Path, tensors: State) -> Path:
    return write(path, b"".join(map(bytes, _serialise(tensors))))


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


@contextmanager
def remarks(*, like: str) -> Iterator[None]:
    """Exactly one remark, of these words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(item.message) for item in caught if issubclass(item.category, ControlKitWarning)]
    assert len(texts) == 1, texts
    assert like in texts[0], texts


def of_shapes(shapes: dict[str, list[int]]) -> Maker:
    return stored(lambda _: {name: torch.zeros(shape) for name, shape in shapes.items()})


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
        assert inspect(packed(folder / "x.safetensors", tensors)).kind == "controlnet"
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
        with pytest.raises(BaseMismatch), ck.attach(units[family], control, num_steps=2):
            pytest.fail("attached")


# L22
def _without(*names: str) -> Callable[[State], State]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


refuse(22, "one", stored(_without(BIAS)), Incomplete, rf"9 of 10 weights, without {BIAS}")
refuse(22, "half", stored(lambda s: dict(list(s.items())[::2])), Incomplete, "5 of 10 weights, without")


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
    r"shape \[8, 4, 3, 3\]; needed \[8, 8, 3, 3\]",
)
refuse(
    24, "bias", stored(replaced(BIAS, lambda t: t[:3].clone())), ShapeMismatch, r"\[3\]; needed \[8\]", BIAS
)


# L25
def _spoiled(value: float) -> Callable[[State], State]:
    def change(tensors: State) -> State:
        tensors[BLOCK][0, 0, :2, 0] = value
        tensors[BIAS][3] = value
        return tensors

    return change


for _value in (float("nan"), float("inf"), -float("inf")):
    refuse(
        25,
        str(_value),
        stored(_spoiled(_value)),
        NonFinite,
        "in 2 tensors",
        rf"'{BLOCK}' \(2\)",
        rf"'{BIAS}' \(1\)",
        "allow_nonfinite=True",
    )


@check(25)
def non_finite_weights_can_be_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(folder / "x.safetensors", _spoiled(float("nan"))(state()))
    with remarks(like="NaN or infinite values in 2 tensors"):
        module = load(path, allow_nonfinite=True)
    assert int(module.state_dict()[BLOCK].isnan().sum()) == 2
    assert load(packed(path, state()), allow_nonfinite=True).notes == ()


# L26
@check(26)
def untrained_output_convolutions_are_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny.controlnet()
    tensors = {
        name: torch.zeros_like(tensor) if name.startswith(("controlnet_down", "controlnet_mid")) else tensor
        for name, tensor in net.state_dict().items()
    }
    net.load_state_dict(tensors)
    with remarks(like="no effect"):
        module = load(net.save(folder / "x"))
    assert any("no effect" in note for note in module.notes)


# L27
for _dtype in (torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64):
    _name = str(_dtype).removeprefix("torch.")
    refuse(
        27,
        _name,
        stored(replaced(BLOCK, lambda t, d=_dtype: t.to(d))),
        Unsupported,
        f"dtype {_name}",
        BLOCK.replace(".", r"\."),
    )


@check(27)
def float64_is_converted_with_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(folder / "x.safetensors", {name: tensor.double() for name, tensor in state().items()})
    with remarks(like="weights stored as float64 were converted to float32"):
        module = load(path)
    assert {part.dtype for part in module.parameters()} == {torch.float32}
    assert torch.equal(module.state_dict()[BLOCK], state()[BLOCK])


@check(27)
def other_tensors_of_torch_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = {**state(), BLOCK: state()[BLOCK].to_sparse()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = {**state(), BIAS: torch.quantize_per_tensor(state()[BIAS], 0.1, 0, torch.qint8)}
    marked = state()
    marked[BIAS].detach_ = 1  # type: ignore[assignment,method-assign]
    for tensors in (sparse, quantised, marked):
        torch.save(tensors, folder / "x.pth")
        with pytest.raises(Unsupported, match="quantised, sparse or of a class of its own") as caught:
            load(folder / "x.pth")
        assert caught.value.code == "CK-L27"


# L28
@check(28)
def what_a_device_cannot_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float8 becomes float16; bfloat16 where the device has none: with a note, or an error if asked for."""
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state().items()}
    with remarks(like="weights stored as float8_e4m3fn were converted to float16"):
        load(packed(folder / "x.safetensors", tensors))

    def without_bfloat16(dtype: torch.dtype, device: Any) -> bool:
        return dtype not in (torch.bfloat16, torch.float64)

    monkeypatch.setattr("controlkit.checkpoints.placing.can_hold", without_bfloat16)
    path = packed(folder / "x.safetensors", {name: tensor.bfloat16() for name, tensor in state().items()})
    with remarks(like="weights stored as bfloat16 were converted to float16, as cpu cannot hold them"):
        assert {part.dtype for part in load(path).parameters()} == {torch.float16}
    with pytest.raises(DtypeUnsupported, match=r"dtype bfloat16, which cpu cannot hold.*float32") as caught:
        load(path, dtype=torch.bfloat16)
    assert caught.value.code == "CK-L28"
    for device in ("meta", "nowhere", "cuda:77", 3.5):
        with pytest.raises(ParameterError, match="device"):
            load(path, device=device)  # type: ignore[arg-type]


# L29
def _flipped(folder: Path, bit: int) -> tuple[Path, str]:
    """A file with one bit flipped in a weight, and the digest of the whole one."""
    whole = load(adapter().save(folder / "whole"))
    content = bytearray((folder / "whole" / "diffusion_pytorch_model.safetensors").read_bytes())
    content[-8 + bit // 8] ^= 1 << bit % 8
    assert whole.digest is not None
    return write(folder / "x.safetensors", bytes(content)), whole.digest


@check(29)
def flipped_bits_are_found_by_the_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = _flipped(folder, 3)
    assert load(path).notes == ()
    for given in (digest, f"sha256:{digest.upper()}"):
        with pytest.raises(CheckpointCorrupt, match=rf"SHA-256 .*; needed {digest}") as caught:
            load(path, sha256=given)
        assert caught.value.code == "CK-L29"
        load(folder / "whole", sha256=given)
    torch.save(state(), folder / "x.pth")
    with pytest.raises(CheckpointCorrupt, match="needed"):
        load(folder / "x.pth", sha256=digest)
    for wrong in ("abc", "", 7, "g" * 64):
        with pytest.raises(ParameterError, match="sha256"):
            load(path, sha256=wrong)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="a state dict"):
        load(state(), sha256=digest)


@check(29)
def a_pickle_of_another_digest_is_not_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(), folder / "x.pth")
    monkeypatch.setattr(torch, "load", pytest.fail)
    for allowed in (True, False):
        with pytest.raises(CheckpointCorrupt, match="SHA-256"):
            load(folder / "x.pth", sha256="0" * 64, allow_pickle=allowed)


@check(29)
def outliers_and_odd_ranges_are_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "x.safetensors"
    tensors = state()
    tensors[BLOCK][0, 0, 0, 0] *= 2.0**20
    with remarks(like=f"'{BLOCK}' ("):
        load(packed(path, tensors))
    net = tiny.controlnet().half()
    whole = net.state_dict()
    assert load(net.save(folder / "good")).notes == ()
    swapped = {name: tensor.view(torch.bfloat16) for name, tensor in whole.items()}
    with remarks(like="may be damaged, or name the wrong dtype"):
        load(packed(path, swapped), config=net.config.to_dict())
    back = {name: tensor.bfloat16().view(torch.float16) for name, tensor in whole.items()}
    with remarks(like="may be damaged, or name the wrong dtype"):
        load(packed(path, back), config=net.config.to_dict())
