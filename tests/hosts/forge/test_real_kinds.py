"""Forge for real with image prompts, content, styles, and files of several maps, in our own panel."""

from __future__ import annotations

import pytest
import torch

import controlkit as ck
from tests.hosts.forge.server import Server
from tests.hosts.forge.test_real import CLEAN, CLOSE, loop
from tests.hosts.webui.kinds import FILE
from tests.hosts.webui.server import Failed
from tests.hosts.webui.test_real import HALF, MAP, PHOTO, apart, guided, module, unit
from tests.hosts.webui.test_real_kinds import CASES, IP, STYLE, UNI, on


@pytest.mark.parametrize("name", CASES)
def test_every_kind_gives_the_latents_of_the_python_api(forge: Server, name: str) -> None:
    units, controls = CASES[name]
    made = forge.make(*units)
    assert apart(made.latents, loop(forge, made, *controls(forge))) < CLOSE
    assert apart(made.latents, forge.bare.latents) > 0.02, "it acts"
    assert forge.get("/controlkit-probe/hooks") == CLEAN


def test_a_control_lora_is_completed_from_the_model_in_use(forge: Server) -> None:
    lora = f"lora/{FILE}"
    made = forge.make(unit(lora))
    assert apart(made.latents, loop(forge, made, module(forge, lora).on(MAP))) < CLOSE
    assert apart(made.latents, forge.bare.latents) > 0.02, "it acts"


def test_an_image_prompt_is_in_the_gradient_through_the_unet(forge: Server) -> None:
    made = forge.make(unit(IP, PHOTO), guided(through_unet=True))
    phi = ck.Guidance(ck.guidance.color(), "blue", scale=0.5, normalize=True, through_unet=True)
    assert apart(made.latents, loop(forge, made, on(forge, IP, PHOTO), phi)) < CLOSE


def test_halves_that_are_run_apart_attend_to_the_same(forge: Server) -> None:
    """Prompts of such different lengths that Forge does not run them in one call."""
    units, prompt = [unit(IP, PHOTO, mode="control"), unit(UNI, PHOTO, condition="content")], "a house " * 200
    made, plain = forge.make(*units, prompt=prompt), forge.make(prompt=prompt)
    assert made.all("cond")[0].shape[1] > 4 * made.all("uncond")[0].shape[1]
    assert apart(made.latents, plain.latents) > 0.02


def test_a_batch_attends_to_its_pictures(forge: Server) -> None:
    both = forge.make(unit(IP, PHOTO), batch_size=2)
    alone = [forge.make(unit(IP, PHOTO), seed=seed) for seed in (3, 4)]
    for row, one in zip(both.latents, alone, strict=True):
        assert apart(row[None], one.latents) < CLOSE


@pytest.mark.parametrize(
    ("units", "told"),
    [
        ([unit(IP, PHOTO, detector="canny")], "reads the picture itself"),
        ([unit(STYLE, PHOTO, mask=HALF)], "whole picture"),
        ([unit(UNI, MAP)], "what its map shows is not told"),
    ],
)
def test_what_does_not_go_together_is_told(forge: Server, units: list[dict[str, object]], told: str) -> None:
    with pytest.raises(Failed, match=told):
        forge.make(*units)
    assert torch.equal(forge.make().latents, forge.bare.latents)
    assert forge.get("/controlkit-probe/hooks") == CLEAN
