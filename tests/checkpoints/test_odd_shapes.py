"""Names with huge numbers and shapes of nothing: an error of ours, soon, whichever door they come through."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.checkpoints.load import sense_of_shapes
from controlkit.errors import CheckpointError, ConfigError, Incomplete, NotACheckpoint, ShapeMismatch
from tests import tiny
from tests.checkpoints.files import state

DOORS: dict[str, Callable[..., Any]] = {"load": ck.load, "inspect": ck.inspect, "unet": ck.unet}
HUGE = "9999999999"
NAMES = (
    f"input_blocks.{HUGE}.0.weight",
    f"input_blocks.{HUGE}.0.in_layers.2.weight",
    f"output_blocks.{HUGE}.0.in_layers.2.weight",
    f"model.diffusion_model.input_blocks.{HUGE}.0.op.weight",
    f"model.diffusion_model.output_blocks.{HUGE}.1.norm.weight",
    f"control_model.input_blocks.{HUGE}.0.weight",
    f"control_model.input_hint_block.{HUGE}.weight",
    f"control_model.zero_convs.{HUGE}.0.weight",
    f"down_blocks.{HUGE}.resnets.0.conv1.weight",
    f"down_blocks.0.resnets.{HUGE}.conv1.weight",
    f"down_blocks.0.attentions.0.transformer_blocks.{HUGE}.attn2.to_k.weight",
    f"up_blocks.{HUGE}.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    f"mid_block.attentions.0.transformer_blocks.{HUGE}.attn2.to_k.weight",
    f"controlnet_down_blocks.{HUGE}.weight",
    f"controlnet_cond_embedding.blocks.{HUGE}.weight",
    f"adapter.body.{HUGE}.resnets.0.block1.weight",
    f"adapter.body.0.resnets.{HUGE}.block1.weight",
    f"body.{HUGE}.block1.weight",
    f"ip_adapter.{HUGE}.to_k_ip.weight",
    f"local_adapter.input_blocks.{HUGE}.0.weight",
    f"transformer_layes.{HUGE}.attn.in_proj_weight",
)


def networks() -> dict[str, dict[str, Tensor]]:
    """What the odd tensor is added to."""
    return {
        "nothing": {},
        "controlnet": tiny.controlnet().state_dict(),
        "adapter": state(),
        "unet": tiny.unet("sd1").state_dict(),
        "classifier": {f"input_blocks.{n}.0.weight": torch.zeros(4, 4, 3, 3) for n in range(3)}
        | {"time_embed.0.weight": torch.zeros(16, 4), "out.2.weight": torch.zeros(3, 4, 3, 3)},
    }


@pytest.mark.parametrize("door", DOORS)
def test_a_huge_number_in_a_name_costs_nothing(door: str) -> None:
    """A second of CPU each; it counted as many blocks before."""
    for beside, tensors in networks().items():
        for name in NAMES:
            began = time.process_time()
            error: Exception | None = None
            with torch.no_grad():
                try:
                    DOORS[door]({**tensors, name: torch.zeros(4, 4, 3, 3)})
                except CheckpointError as caught:
                    error = caught
                except ck.ControlKitWarning as warning:  # taken, with the odd one left out
                    error = warning
            assert time.process_time() - began < 1, (beside, name)
            if door != "inspect" and beside == "nothing":
                assert error is not None, name


SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3, 0), (0, 0, 0, 0), (1, 1, 1, 1, 1))


@pytest.mark.parametrize("beside", ["controlnet", "adapter", "unet"])
def test_impossible_shapes_are_an_error_of_ours(beside: str) -> None:
    """Each kind of tensor in two odd shapes: no IndexError, no ZeroDivisionError, no half module."""
    tensors = networks()[beside]
    doors = ("inspect", "unet") if beside == "unet" else ("inspect", "load")
    kinds = {tuple(part for part in name.split(".") if not part.isdigit()): name for name in tensors}
    for number, name in enumerate(kinds.values()):
        for shape in (SHAPES[number % len(SHAPES)], SHAPES[(number + 2) % len(SHAPES)]):
            if shape == tuple(tensors[name].shape):
                continue
            odd = {**tensors, name: torch.zeros(shape)}
            ck.inspect(odd)
            with pytest.raises(CheckpointError) as caught:
                DOORS[doors[1]](odd)
            assert not isinstance(caught.value, NotACheckpoint), (name, shape)
            assert caught.value.fix, (name, shape)


FAULTS = (IndexError, ZeroDivisionError, KeyError, TypeError, ValueError, AttributeError)
OTHER = r"of other structure is not read; if it is the right one, download"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_makes_no_sense_of_shapes_is_a_shape_mismatch(fault: type[Exception]) -> None:
    words = f"a ControlNet.*{OTHER}"
    with pytest.raises(ShapeMismatch, match=words) as caught, sense_of_shapes("a ControlNet", "x"):
        raise fault("x")
    assert isinstance(caught.value.__cause__, fault)
    assert fault.__name__ in caught.value.found
    with pytest.raises(ConfigError, match="ours"), sense_of_shapes("a ControlNet", "x"):
        raise ConfigError("ours")
    with pytest.raises(RuntimeError, match="other"), sense_of_shapes("a ControlNet", "x"):
        raise RuntimeError("other")


def test_a_missing_or_odd_tensor_of_a_sound_file_may_be_another_structure() -> None:
    """Not 'download it again' alone, where the file is as it was meant and another network's."""
    net = tiny.controlnet(block_out_channels=(32, 64, 64, 64), norm_num_groups=32)
    original = net.original_state()
    faults: dict[str, tuple[dict[str, Tensor], type[Exception]]] = {
        "middle": (_without(original, "control_model.middle_block.1."), Incomplete),
        "hint": (_without(original, "control_model.input_hint_block.2."), Incomplete),
        "block": (_without(original, "control_model.input_blocks.1."), Incomplete),
        "rank": ({**net.state_dict(), "conv_in.weight": torch.zeros(32, 4)}, ShapeMismatch),
        "none": (_without(net.state_dict(), "down_blocks.0.resnets."), Incomplete),
    }
    for name, (tensors, error) in faults.items():
        heads = "attention_head_dim" if name in ("rank", "none") else "num_heads"
        with pytest.raises(error, match=OTHER) as caught:
            ck.load(tensors, config={heads: 4})
        assert not str(caught.value).startswith("Download"), name


def _without(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name: part for name, part in tensors.items() if not name.startswith(start)}
