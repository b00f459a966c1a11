"""AUTOMATIC1111's web UI for real with sd-webui-controlnet beside us: its units, ours, and both at once.

It replaces the U-Net's forward, marks the prompts, and takes the marks off again where the U-Net begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import controlkit as ck
from tests.hosts.webui.conftest import THEIR_MAP, neighbourly
from tests.hosts.webui.kinds import FILE
from tests.hosts.webui.loops import loop
from tests.hosts.webui.server import Failed, Server, sent
from tests.hosts.webui.test_real import CLOSE, HALF, MAP, PHOTO, apart, guided, module, unit
from tests.hosts.webui.test_real_kinds import STYLE, on

NAME = "tiny-shaped"
A, B, OVERFLOW, IP = (f"{name}-shaped/{FILE}" for name in ("net-a", "net-b", "overflow", "ip-plain"))
THEIRS = ("net", "adapter")


def theirs(webui: Server, name: str) -> Any:
    """The control that a unit of theirs is."""
    return module(webui, f"theirs-{name}/theirs-{name}.safetensors").on(THEIR_MAP, scale=0.8)


OURS: dict[str, tuple[list[dict[str, Any]], Callable[[Server], list[Any]]]] = {
    "nothing": ([], lambda w: []),
    "a ControlNet": ([unit(A)], lambda w: [module(w, A).on(MAP)]),
    "two, one for one half in a region": (
        [unit(A, weight=0.7), unit(B, PHOTO, mode="control", mask=HALF, start=0.25)],
        lambda w: [
            module(w, A).on(MAP, scale=0.7),
            module(w, B).on(PHOTO, mode="control", mask=HALF[..., 0] / 255.0, start=0.25),
        ],
    ),
    "an image prompt": ([unit(IP, PHOTO)], lambda w: [on(w, IP, PHOTO)]),
    "style tokens": ([unit(STYLE, PHOTO)], lambda w: [on(w, STYLE, PHOTO)]),
    "guidance": (
        [unit(A), guided()],
        lambda w: [
            module(w, A).on(MAP),
            ck.Guidance(ck.guidance.color(), "blue", scale=0.5, normalize=True),
        ],
    ),
}


@pytest.mark.parametrize(("name", "ours"), [("net", ours) for ours in OURS] + [("adapter", "a ControlNet")])
def test_a_unit_of_theirs_and_ours_are_the_sum(neighbours: Server, name: str, ours: str) -> None:
    units, controls = OURS[ours]
    made = neighbours.make(*units, theirs=[neighbourly()[name]])
    if ours == "style tokens":
        expected = loop(neighbours, made, *controls(neighbours), theirs(neighbours, name), name=NAME)
    else:
        expected = loop(neighbours, made, theirs(neighbours, name), *controls(neighbours), name=NAME)
    assert apart(made.latents, expected) < CLOSE
    if units:
        assert apart(made.latents, neighbours.theirs[name].latents) > 0.02, "ours act"
    assert apart(made.latents, neighbours.make(*units).latents) > 0.02, "theirs act"


def test_beside_a_reference_of_theirs_which_runs_the_unet_twice(neighbours: Server) -> None:
    reference = {"enabled": True, "module": "reference_only", "model": "None", "threshold_a": 0.5}
    given: dict[str, Any] = {"theirs": [{**reference, "image": sent(THEIR_MAP)}]}
    alone = neighbours.make(**given)
    both = neighbours.make(unit(A), unit(IP, PHOTO), unit(STYLE, PHOTO), guided(), **given)
    assert apart(alone.latents, neighbours.bare.latents) > 0.02, "theirs acts"
    assert apart(both.latents, alone.latents) > 0.02, "ours act"
    assert torch.equal(neighbours.make(**given).latents, alone.latents)
    assert torch.equal(neighbours.make().latents, neighbours.bare.latents)


@pytest.mark.parametrize("name", THEIRS)
def test_theirs_alone_is_what_it_is_without_us(neighbours: Server, name: str) -> None:
    for units in ([], [unit(A, enabled=False)]):
        made = neighbours.make(*units, theirs=[neighbourly()[name]])
        assert torch.equal(made.latents, neighbours.theirs[name].latents)
        assert np.array_equal(made.pixels, neighbours.theirs[name].pixels)


def test_ours_alone_and_neither(neighbours: Server) -> None:
    neighbours.make(unit(B), theirs=[neighbourly()["net"]])
    made = neighbours.make(unit(A))
    assert apart(made.latents, loop(neighbours, made, module(neighbours, A).on(MAP), name=NAME)) < CLOSE
    assert torch.equal(neighbours.make().latents, neighbours.bare.latents)


def test_halves_that_are_run_apart_are_the_same(neighbours: Server) -> None:
    units = [unit(A, mode="control"), unit(STYLE, PHOTO)]
    given: dict[str, Any] = {"theirs": [neighbourly()["net"]]}
    together = neighbours.make(*units, **given)
    halves = neighbours.make(*units, **given, override_settings={"batch_cond_uncond": False})
    neighbours.post("/sdapi/v1/options", {"batch_cond_uncond": True})  # the web UI keeps it
    assert apart(together.latents, halves.latents) < CLOSE


@pytest.mark.parametrize(
    ("units", "fails", "told"),
    [
        ([unit("not there")], 0, "net-a-shaped"),
        ([unit(OVERFLOW)], 0, "NaN or infinity"),
        ([unit(A), unit(OVERFLOW, start=0.5)], 0, "at step 3 of 4"),
        ([unit(A)], 2, "the probe made this U-Net fail"),
        ([unit(A), guided(through_unet=True)], 0, "without gradients"),
    ],
)
def test_after_a_failure_of_ours_everything_is_as_it_was(
    neighbours: Server, units: list[dict[str, Any]], fails: int, told: str
) -> None:
    with pytest.raises(Failed, match=told):
        neighbours.make(*units, fails=fails, theirs=[neighbourly()["net"]])
    made = neighbours.make()
    assert torch.equal(made.latents, neighbours.bare.latents)
    assert np.array_equal(made.pixels, neighbours.bare.pixels)
    again = neighbours.make(theirs=[neighbourly()["net"]])
    assert torch.equal(again.latents, neighbours.theirs["net"].latents)
