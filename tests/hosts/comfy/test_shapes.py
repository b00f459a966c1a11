"""ComfyUI's U-Net in our words, its lists, and its noise levels as steps; without ComfyUI."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from controlkit import NotApplicable, Residuals
from controlkit.hosts.comfy.clock import step_at
from controlkit.hosts.comfy.layout import as_lists, merged
from controlkit.hosts.comfy.unet import target_of
from tests.hosts.comfy import stand_in

SD1 = ((320, 640, 1280, 1280), (True, True, True, False), 2, 768, 0)
SDXL = ((320, 640, 1280), (False, True, True), 2, 2048, 2816)
SMALL = ((96, 144), (True, True), 1, 128, 0)


def describe(widths, attends, depth, tokens, pooled):
    return target_of(stand_in.model(stand_in.unet(widths, attends, depth=depth, tokens=tokens), pooled))


@pytest.mark.parametrize(
    ("shape", "family", "skips", "positions", "channels"),
    [
        (SD1, "sd1", 12, (2, 5, 8, 11, 12), (320, 640, 1280, 1280, 1280)),
        (SDXL, "sdxl", 9, (3, 5, 8, 9), (320, 640, 1280, 1280)),
        (SMALL, "embedded", 4, (1, 3, 4), (96, 144, 144)),
    ],
)
def test_the_unet_is_read_from_its_blocks(shape, family, skips, positions, channels) -> None:
    target = describe(*shape)
    assert target.family == family
    assert len(target.skip_channels) == skips == len(target.skip_strides)
    assert target.encoder_positions == positions, "where T2I-Adapters add: after the last block of a level"
    assert target.encoder_channels == channels
    assert target.token_dim == shape[3]
    assert target.added_dim == (shape[4] or None)
    assert target.slots == {"skips", "mid", "encoder", "noise"}


def test_what_is_no_unet_is_refused_by_name() -> None:
    with pytest.raises(NotApplicable, match="a Linear"):
        target_of(stand_in.model(nn.Linear(1, 1)))


def taken(lists: dict[str, list[Tensor | None]], name: str) -> list[float | None]:
    """What ComfyUI's U-Net takes: from the end."""
    values: list[float | None] = []
    while lists[name]:
        last = lists[name].pop()
        values.append(None if last is None else float(last.flatten()[0]))
    return values


def marks(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.full((1, 1, 1, 1), value) for value in values)


def test_lists_are_taken_in_the_order_of_the_blocks() -> None:
    target = describe(*SD1)
    residuals = Residuals(marks(*range(12)), marks(99.0)[0], marks(20.0, 21.0, 22.0, 23.0))
    lists = as_lists(residuals, target, rows=2)
    assert all(value is None or value.shape[0] == 2 for value in lists["output"])
    assert taken(lists, "output") == [float(i) for i in reversed(range(12))], "the deepest skip first"
    assert taken(lists, "middle") == [99.0]
    places = {2: 20.0, 5: 21.0, 8: 22.0, 11: 23.0}
    assert taken(lists, "input") == [places.get(block) for block in range(12)], "the first block first"


def test_the_last_feature_of_an_sdxl_adapter_goes_into_the_middle() -> None:
    lists = as_lists(Residuals(encoder=marks(1.0, 2.0, 3.0, 4.0)), describe(*SDXL), rows=1)
    assert taken(lists, "middle") == [4.0]
    assert taken(lists, "input") == [{3: 1.0, 5: 2.0, 8: 3.0}.get(block) for block in range(9)]


def test_sums_meet_where_the_unet_takes_from_and_change_nothing() -> None:
    ours = {"input": [], "middle": [*marks(1.0)], "output": [*marks(1.0, 2.0, 3.0)]}
    theirs = {"input": [None, *marks(5.0)], "middle": [None], "output": [*marks(10.0, 20.0)]}
    both = merged(ours, theirs)
    assert taken(both, "output") == [23.0, 12.0, 1.0]
    assert taken(both, "middle") == [1.0]
    assert taken(both, "input") == [5.0, None]
    assert len(ours["output"]) == 3, "another call of the U-Net may need them"
    assert len(theirs["output"]) == 2


@pytest.mark.parametrize(
    ("sigma", "step"),
    [(14.0, 0), (14.0001, 0), (9.0, 0), (7.0, 1), (6.9999, 1), (3.0, 2), (2.0, 2), (1.0, 3), (0.02, 3)],
)
def test_a_noise_level_belongs_to_the_step_that_it_is_called_for(sigma: float, step: int) -> None:
    assert step_at(stand_in.SIGMAS, sigma) == (step, 4)


def test_without_levels_there_is_one_step() -> None:
    assert step_at(None, 3.0) == (0, 1)
