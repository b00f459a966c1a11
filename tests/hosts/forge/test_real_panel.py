"""Forge for real: our detectors and control files in its own ControlNet panel, by its API."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.preprocessors import detectors, preprocess
from tests.hosts.forge.server import Server
from tests.hosts.forge.test_real import CLEAN, CLOSE, loop
from tests.hosts.webui.kinds import FILE
from tests.hosts.webui.server import Failed, sent
from tests.hosts.webui.test_real import ADAPTER, MAP, PHOTO, A, apart, module, unit
from tests.hosts.webui.test_real_kinds import STYLE, UNI, UNION, on

WHOLE = "ControlKit whole picture"
PLAIN = [
    info for info in detectors() if not info.needs_weights and not info.extra and info.family != "inpaint"
]
"""What runs without weights and without more packages; ``embedded-…`` has its weights with it."""


def listed(forge: Server, model: str) -> str:
    """What Forge's list calls a file: its name, and a checksum of some of it."""
    path = forge.base / "models" / "ControlNet" / model
    with path.open("rb") as file:
        file.seek(0x100000)
        digest = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    name = f"{Path(model).stem} [{digest}]"
    assert name in forge.get("/controlnet/model_list")["model_list"]
    return name


def theirs(forge: Server, model: str, preprocessor: str, image: Any = MAP, **more: Any) -> dict[str, Any]:
    """A unit of Forge's own panel."""
    given = {"module": preprocessor, "model": listed(forge, model), "image": sent(image), "processor_res": 64}
    return {**given, "resize_mode": "Just Resize", **more}


def test_its_list_of_preprocessors_has_our_detectors(forge: Server) -> None:
    modules = forge.get("/controlnet/module_list")["module_list"]
    wanted = {f"ControlKit {info.name}" for info in detectors()} - {
        "ControlKit openpose",
        "ControlKit inpaint",
    }
    assert wanted | {"ControlKit open pose", "ControlKit map: depth", WHOLE} <= set(modules)
    types = forge.get("/controlnet/control_types")["control_types"]
    assert {"ControlKit canny", "canny"} <= set(types["Canny"]["module_list"])
    assert types["Canny"]["default_option"] == "canny", "what Forge proposes stays"
    assert "ControlKit lines" in types["MLSD"]["module_list"]


@pytest.mark.parametrize("name", [info.name for info in PLAIN])
def test_its_api_runs_our_detectors(forge: Server, name: str) -> None:
    body = {"controlnet_module": f"ControlKit {name}", "controlnet_input_images": [sent(PHOTO)]}
    unmoved = {"controlnet_threshold_a": -1e9, "controlnet_threshold_b": -1e9}  # outside every range
    answer = forge.post("/controlnet/detect", {**body, "controlnet_processor_res": 96, **unmoved})
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB"))
    assert np.array_equal(found, np.asarray(preprocess(Image.fromarray(PHOTO), name, size=96)))


def test_its_sliders_are_our_options(forge: Server) -> None:
    body = {"controlnet_module": "ControlKit canny", "controlnet_input_images": [sent(PHOTO)]}
    given = {"controlnet_threshold_a": 300, "controlnet_threshold_b": 60, "controlnet_processor_res": 64}
    answer = forge.post("/controlnet/detect", {**body, **given})
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB"))
    wanted = preprocess(Image.fromarray(PHOTO), "canny", size=64, low_threshold=60, high_threshold=300)
    assert np.array_equal(found, np.asarray(wanted))


CASES: dict[str, tuple[Any, Any]] = {
    "maps of several kinds": (
        lambda f: [theirs(f, UNI, "ControlKit canny", PHOTO, weight=0.6, threshold_a=60, threshold_b=140)],
        lambda f: [
            on(
                f,
                UNI,
                {"canny": PHOTO},
                detect={"canny": "canny"},
                detect_options={"canny": {"low_threshold": 60, "high_threshold": 140}},
                local_scale=0.6,
            )
        ],
    ),
    "a map that is ready": (
        lambda f: [theirs(f, UNION, "ControlKit map: depth", weight=0.5)],
        lambda f: [on(f, UNION, {"depth": MAP}, scale=0.5)],
    ),
    "a window": (
        lambda f: [theirs(f, UNION, "ControlKit map: canny", guidance_start=0.0, guidance_end=0.5)],
        lambda f: [on(f, UNION, {"canny": MAP}, end=0.5)],
    ),
    "content": (
        lambda f: [theirs(f, UNI, WHOLE, PHOTO, weight=0.8)],
        lambda f: [on(f, UNI, content=PHOTO, global_scale=0.8)],
    ),
    "a style": (
        lambda f: [theirs(f, STYLE, WHOLE, PHOTO, weight=0.7)],
        lambda f: [on(f, STYLE, PHOTO, scale=0.7)],
    ),
    "of a shape that Forge does not know": (
        lambda f: [theirs(f, A, "None"), theirs(f, ADAPTER, "None", PHOTO, weight=0.5)],
        lambda f: [module(f, A).on(MAP), module(f, ADAPTER).on(PHOTO, scale=0.5)],
    ),
    "two of them": (
        lambda f: [
            theirs(f, UNI, "ControlKit map: depth"),
            theirs(f, UNI, "ControlKit map: canny", PHOTO, weight=0.5),
        ],
        lambda f: [on(f, UNI, {"midas": MAP}), on(f, UNI, {"canny": PHOTO}, local_scale=0.5)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_its_panel_gives_the_latents_of_the_python_api(forge: Server, name: str) -> None:
    units, controls = CASES[name]
    made = forge.make(theirs=units(forge))
    assert apart(made.latents, loop(forge, made, *controls(forge))) < CLOSE
    assert apart(made.latents, forge.bare.latents) > 0.02, "it acts"


def test_both_panels_at_once_give_the_sum(forge: Server) -> None:
    made = forge.make(unit(), theirs=[theirs(forge, UNION, "ControlKit map: depth", PHOTO)])
    both = [module(forge, A).on(MAP), on(forge, UNION, {"depth": PHOTO})]
    assert apart(made.latents, loop(forge, made, *both)) < CLOSE


def test_a_batch_and_hires_fix_by_its_panel(forge: Server) -> None:
    given = [theirs(forge, UNION, "ControlKit map: depth")]
    both = forge.make(theirs=given, batch_size=2)
    alone = [forge.make(theirs=given, seed=seed) for seed in (3, 4)]
    for row, one in zip(both.latents, alone, strict=True):
        assert apart(row[None], one.latents) < CLOSE
    second = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    second |= {"hr_cfg": 2.0, "hr_additional_modules": ["Use same choices"]}
    late = forge.make(theirs=[given[0] | {"hr_option": "High res only"}], **second)
    assert torch.equal(late.all("x")[1], forge.make(**second).all("x")[1]), "nothing in the first pass"


@pytest.mark.parametrize(
    ("model", "preprocessor", "more", "told"),
    [
        (UNI, "None", {}, "ControlKit map"),
        (UNION, "ControlKit color", {}, "whose maps show color"),
        (STYLE, "ControlKit canny", {}, WHOLE),
        (UNION, WHOLE, {}, "one for maps"),
        (STYLE, WHOLE, {"mask_image": sent(MAP)}, "a mask"),
    ],
)
def test_what_does_not_go_together_ends_the_picture(
    forge: Server, model: str, preprocessor: str, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(Failed, match=told):
        forge.make(theirs=[theirs(forge, model, preprocessor, **more)])
    assert torch.equal(forge.make().latents, forge.bare.latents)
    assert forge.get("/controlkit-probe/hooks") == CLEAN


def test_files_that_forge_reads_stay_its_own(forge: Server) -> None:
    before = len(forge.log)
    forge.make(theirs=[theirs(forge, f"lora/{FILE}", "None")])
    assert "Current ControlNet ControlNetPatcher" in forge.log[before:]
