"""Rows, steps and noise levels as the web UI's denoiser announces them; without the web UI."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from controlkit import NotApplicable
from controlkit.hosts.webui.calls import announced, unmarked
from controlkit.hosts.webui.model import alpha_bar_of, target_of
from tests.hosts.webui import stand_in


@pytest.mark.parametrize(
    ("given", "calls", "meaning"),
    [
        ({}, [2], [("cond", "uncond")]),
        ({}, [1, 1], [("cond",), ("uncond",)]),
        ({"prompts": 3, "images": 3}, [6], [("cond", "uncond")]),
        ({"prompts": 3, "images": 3}, [3, 3, 3], [("cond",), ("uncond",), None]),
        ({"prompts": 2}, [3], [("cond", "cond", "uncond")]),
        ({"rows": 3}, [3], [("cond", "image", "uncond")]),
        ({}, [1], [("cond",)]),
        ({"prompts": 2, "images": 2}, [3], [None]),
        ({}, [5], [None]),
    ],
)
def test_rows_are_taken_in_the_order_they_are_announced(given: Any, calls: Any, meaning: Any) -> None:
    step = announced(stand_in.params(**given))
    assert [step.take(rows) for rows in calls] == meaning


def test_mixed_rows_are_refused() -> None:
    with pytest.raises(NotApplicable, match="AND"):
        announced(stand_in.params(prompts=4, images=2))


@pytest.mark.parametrize(("step", "steps", "index"), [(0, 4, 0), (3, 4, 3), (9, 4, 3), (2, None, 0)])
def test_steps(step: int, steps: int, index: int) -> None:
    assert announced(stand_in.params(step=step, steps=steps)).index == index


def test_noise_levels_are_sigmas_or_timesteps() -> None:
    given, model = stand_in.params(), stand_in.model()
    assert not announced(given).timestep
    given.denoiser.alphas = model.alphas_cumprod
    given.sigma = torch.tensor([501.0, 501.0])
    step = announced(given)
    assert step.timestep
    assert alpha_bar_of(model, step.level, timestep=True) == pytest.approx(float(model.alphas_cumprod[501]))
    assert alpha_bar_of(model, 2.0, timestep=False) == pytest.approx(0.2)


def test_the_unet_is_read_from_its_blocks() -> None:
    target = target_of(stand_in.model(parameterization="v"))
    assert target.skip_channels == (8, 8, 8, 16)
    assert target.skip_strides == (1, 1, 2, 2)
    assert target.encoder_positions == (1, 3, 4)
    assert (target.channels, target.token_dim, target.prediction) == (4, 6, "v_prediction")
    assert target.added_dim is None


def test_sizes_of_sdxl() -> None:
    unet: Any = stand_in.UNetModel()
    unet.num_classes, unet.label_emb = "sequential", nn.Sequential(nn.Sequential(nn.Linear(2816, 4)))
    assert target_of(stand_in.model(unet)).added_dim == 2816


@pytest.mark.parametrize("model", [SimpleNamespace(), stand_in.model(nn.Linear(1, 1))])
def test_what_is_no_unet_is_refused(model: Any) -> None:
    with pytest.raises(NotApplicable):
        target_of(model)


def test_a_mark_before_the_prompt_is_no_part_of_it() -> None:
    prompt = torch.randn(2, 5, 6)
    signs = torch.tensor([1024.0, -1024.0]).reshape(2, 1, 1).expand(2, 1, 6)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        mark, rest = unmarked(torch.cat([signs, prompt], dim=1).to(kind))
        assert torch.equal(mark, signs.to(kind))  # pyright: ignore[reportArgumentType]
        assert torch.equal(rest, prompt.to(kind))  # pyright: ignore[reportArgumentType]
    almost = torch.cat([signs, prompt], dim=1)
    almost[1, 0, 3] = 3.0
    for plain in (prompt, almost, signs, None):
        found, rest = unmarked(plain)
        assert found is None
        assert rest is plain
