"""AUTOMATIC1111's web UI for real with models of other kinds: v, inpainting, SDXL; tiny ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import controlkit as ck
from tests.hosts.webui.kinds import FILE
from tests.hosts.webui.loops import loop
from tests.hosts.webui.server import Failed, Picture, Server, sent
from tests.hosts.webui.test_real import ADAPTER, CLOSE, HALF, MAP, PHOTO, A, apart, guided, module, unit
from tests.hosts.webui.test_real_kinds import IP, encoder, on

A_XL, ADAPTER_XL, IP_XL = (f"{name}-xl/{FILE}" for name in ("net-a", "adapter", "ip-plain"))
Case = tuple[str, list[dict[str, Any]], Callable[[Server], list[Any]]]


def blue(**more: Any) -> ck.Guidance:
    return ck.Guidance(ck.guidance.color(), "blue", scale=0.5, normalize=True, **more)


CASES: dict[str, Case] = {
    "v": ("tiny-v", [], lambda w: []),
    "v, a ControlNet": ("tiny-v", [unit()], lambda w: [module(w, A).on(MAP)]),
    "v, an image prompt and an adapter": (
        "tiny-v",
        [unit(IP, PHOTO), unit(ADAPTER, weight=0.5)],
        lambda w: [on(w, IP, PHOTO), module(w, ADAPTER).on(MAP, scale=0.5)],
    ),
    "v, guidance": (
        "tiny-v",
        [unit(), guided()],
        lambda w: [module(w, A).on(MAP), blue()],
    ),
    "v, guidance through the U-Net": (
        "tiny-v",
        [unit(), guided(through_unet=True)],
        lambda w: [module(w, A).on(MAP), blue(through_unet=True)],
    ),
    "inpainting": ("tiny-inpaint", [], lambda w: []),
    "inpainting, a ControlNet": ("tiny-inpaint", [unit(mode="control")], lambda w: [a(w, mode="control")]),
    "inpainting, an image prompt and an adapter": (
        "tiny-inpaint",
        [unit(IP, PHOTO), unit(ADAPTER, weight=0.5)],
        lambda w: [on(w, IP, PHOTO), module(w, ADAPTER).on(MAP, scale=0.5)],
    ),
    "inpainting, guidance through the U-Net": (
        "tiny-inpaint",
        [unit(), guided(through_unet=True)],
        lambda w: [module(w, A).on(MAP), blue(through_unet=True)],
    ),
    "SDXL": ("tiny-xl", [], lambda w: []),
    "SDXL, a ControlNet": ("tiny-xl", [unit(A_XL)], lambda w: [module(w, A_XL).on(MAP)]),
    "SDXL, a ControlNet for one half in a region": (
        "tiny-xl",
        [unit(A_XL, mode="control", mask=HALF, end=0.5)],
        lambda w: [module(w, A_XL).on(MAP, mode="control", mask=HALF[..., 0] / 255.0, end=0.5)],
    ),
    "SDXL, an image prompt and an adapter": (
        "tiny-xl",
        [unit(IP_XL, PHOTO), unit(ADAPTER_XL, weight=0.5)],
        lambda w: [on(w, IP_XL, PHOTO), module(w, ADAPTER_XL).on(MAP, scale=0.5)],
    ),
    "SDXL, guidance": ("tiny-xl", [unit(A_XL), guided()], lambda w: [module(w, A_XL).on(MAP), blue()]),
    "SDXL, guidance through the U-Net": (
        "tiny-xl",
        [unit(A_XL), guided(through_unet=True)],
        lambda w: [module(w, A_XL).on(MAP), blue(through_unet=True)],
    ),
}


def a(webui: Server, **more: Any) -> Any:
    return module(webui, A).on(MAP, **more)


def make(webui: Server, name: str, *units: Any, **more: Any) -> Picture:
    """A picture of another checkpoint, which is the web UI's for this one alone; no network for previews."""
    chosen = {"sd_model_checkpoint": name, "live_previews_enable": False}
    return webui.make(*units, override_settings=chosen, **more)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_model_gives_the_latents_of_the_python_api(kinds_of_models: Server, case: str) -> None:
    name, units, controls = CASES[case]
    made = make(kinds_of_models, name, *units)
    assert apart(made.latents, loop(kinds_of_models, made, *controls(kinds_of_models), name=name)) < CLOSE
    if units:
        assert apart(made.latents, make(kinds_of_models, name).latents) > 0.05, "it acts"
    assert kinds_of_models.get("/controlkit-probe/hooks") == {"forward": 0}


@pytest.mark.parametrize(
    ("name", "units", "told"),
    [
        ("tiny-xl", [unit()], "tokens 32 wide"),
        ("tiny-xl", [unit(IP, PHOTO)], "image prompt|IP-Adapter"),
        ("tiny", [unit(A_XL)], "tokens 64 wide"),
    ],
)
def test_a_file_for_another_kind_of_model_is_refused(
    kinds_of_models: Server, name: str, units: list[dict[str, Any]], told: str
) -> None:
    plain = make(kinds_of_models, name)
    with pytest.raises(Failed, match=told):
        make(kinds_of_models, name, *units)
    assert torch.equal(make(kinds_of_models, name).latents, plain.latents)
    assert kinds_of_models.get("/controlkit-probe/hooks") == {"forward": 0}


def test_an_inpainted_picture_keeps_what_is_known(kinds_of_models: Server) -> None:
    given: dict[str, Any] = {
        "mode": "img2img",
        "init_images": [sent(PHOTO)],
        "mask": sent(HALF),
        "mask_blur": 0,
        "denoising_strength": 0.75,
        "steps": 8,
        "inpainting_fill": 1,
        "inpaint_full_res": False,
    }
    for name in ("tiny", "tiny-inpaint"):
        plain = make(kinds_of_models, name, **given)
        made = make(kinds_of_models, name, unit(), guided(), **given)
        assert (made.pixels[:, :28] == plain.pixels[:, :28]).all(), "the known half"
        assert (made.pixels[:, 36:] != plain.pixels[:, 36:]).any(), "the other"


def test_the_model_is_exchanged_between_pictures(kinds_of_models: Server) -> None:
    first = kinds_of_models.make(unit())
    make(kinds_of_models, "tiny-v", unit())
    assert torch.equal(kinds_of_models.make(unit()).latents, first.latents)
    assert encoder(kinds_of_models).is_dir()
