"""Clients of AUTOMATIC1111 and sd-webui-controlnet: what they send becomes the recipe that it means."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.recipes import encode
from controlkit.ui import units
from tests.ui.conftest import photo

PHOTO = encode(photo())
UNIT = {"image": PHOTO, "module": "canny", "model": "controlnet-canny", "processor_res": 64}
ASKED = {"prompt": "a house", "seed": 5, "steps": 3, "width": 64, "height": 64, "cfg_scale": 3.0}


def opened(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture)


def expected(**control: Any) -> np.ndarray:
    given = {"module": "embedded:controlnet-canny", "image": photo(), **control}
    recipe = {"prompt": "a house", "seed": 5, "steps": 3, "width": 64, "height": 64, "controls": [given]}
    return np.asarray(ck.run(recipe)[0])


CANNY = {"detect": "canny", "detect_options": {"size": 64}}
SLIDERS = {"size": 64, "low_threshold": 40, "high_threshold": 90}
WINDOW = {"guidance_start": 0.3, "guidance_end": 0.9}


@pytest.mark.parametrize(
    ("unit", "control"),
    [
        ({}, CANNY),
        ({"threshold_a": 40, "threshold_b": 90}, {"detect": "canny", "detect_options": SLIDERS}),
        ({"weight": 0.5, **WINDOW}, {**CANNY, "scale": 0.5, "start": 0.3, "end": 0.9}),
        ({"control_mode": 1}, {**CANNY, "mode": "prompt"}),
        ({"control_mode": "ControlNet is more important"}, {**CANNY, "mode": "control"}),
        ({"module": "none", "resize_mode": "Resize and Fill"}, {"resize": "pad"}),
        ({"module": "invert (from white bg & black line)", "pixel_perfect": True}, {"detect": "invert"}),
        ({"mask": encode(photo().convert("L"))}, {**CANNY, "mask": photo().convert("L")}),
    ],
)
def test_a_unit_is_the_control_that_it_means(
    client: Any, unit: dict[str, Any], control: dict[str, Any]
) -> None:
    units = [{**UNIT, **unit}, {"enabled": False}]
    answer = client.post(
        "/sdapi/v1/txt2img", json={**ASKED, "alwayson_scripts": {"ControlNet": {"args": units}}}
    )
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert np.array_equal(opened(told["images"][0]), expected(**control))
    assert json.loads(told["info"])["all_seeds"] == [5]


@pytest.mark.parametrize(
    ("changes", "kind", "options"),
    [
        ({"sampler_name": "Euler a"}, "EulerAncestralDiscreteScheduler", {}),
        ({"sampler_name": "DPM++ 2M Karras"}, "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        (
            {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True},
        ),
        ({"sampler_index": "DDIM", "scheduler": "karras"}, "DDIMScheduler", {}),
        ({}, None, None),
    ],
)
def test_samplers(service: Any, changes: dict[str, Any], kind: str | None, options: Any) -> None:
    from controlkit.ui.webui import recipe_of

    found = recipe_of({**ASKED, **changes}, service).scheduler
    assert (found and (found.name, found.options)) == (kind and (kind, options))


def test_a_seed_of_minus_one_is_any(service: Any) -> None:
    from controlkit.ui.webui import recipe_of

    first, second = (recipe_of({**ASKED, "seed": -1}, service).seed for _ in range(2))
    assert first != second


def test_lists_have_what_clients_ask_for(client: Any) -> None:
    assert client.get("/controlnet/version").json() == {"version": 2}
    assert "embedded:controlnet-canny" in client.get("/controlnet/model_list").json()["model_list"]
    modules = client.get("/controlnet/module_list").json()
    assert {"none", "canny", "tile_resample"} <= set(modules["module_list"])
    sliders = modules["module_detail"]["canny"]["sliders"]
    assert [slider["name"] for slider in sliders] == ["low_threshold", "high_threshold"]
    types = client.get("/controlnet/control_types").json()["control_types"]
    assert types["Canny"]["model_list"] == ["None", "embedded:controlnet-canny"]
    assert client.get("/controlnet/settings").json()["control_net_unit_count"] >= 3
    assert client.get("/sdapi/v1/sd-models").json()[0]["title"] == "embedded:base"
    assert "Euler a" in [sampler["name"] for sampler in client.get("/sdapi/v1/samplers").json()]
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "embedded:base"
    assert client.get("/sdapi/v1/progress").json()["progress"] == 0.0
    assert client.get("/sdapi/v1/loras").json() == []
    assert client.post("/sdapi/v1/refresh-checkpoints").json() == {}
    assert client.post("/sdapi/v1/interrupt").json() == {}


def test_every_name_of_theirs_is_a_detector_of_ours() -> None:
    from controlkit.ui.listing import detectors

    ours = {info["name"]: {option["name"] for option in info["options"]} for info in detectors()}
    assert set(units.ALIASES.values()) <= set(ours)
    for name, sliders in units.SLIDERS.items():
        assert set(sliders) <= ours[name]


def test_detect(client: Any) -> None:
    body = {"controlnet_module": "canny", "controlnet_images": [PHOTO, f"data:image/png;base64,{PHOTO}"],
            "controlnet_processor_res": 64}  # fmt: skip
    told = client.post("/controlnet/detect", json=body).json()
    wanted = np.asarray(ck.preprocess(photo(), "canny"))
    assert [np.array_equal(opened(image), wanted) for image in told["images"]] == [True, True]


PAINTED = photo().convert("L").point([0] * 30 + [255] * 226)
MASK, BLACK = encode(PAINTED), encode(Image.new("L", (64, 64)))


def start(**changes: Any) -> dict[str, Any]:
    return {"init_images": [PHOTO], "denoising_strength": 0.7, **changes}


def unit(**changes: Any) -> dict[str, Any]:
    return {"alwayson_scripts": {"controlnet": {"args": [{**UNIT, **changes}]}}}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/sdapi/v1/txt2img", {"prompt": 3}, "prompt"),
        ("/sdapi/v1/txt2img", {"sampler_name": "Best"}, "Euler a"),
        ("/sdapi/v1/txt2img", {"enable_hr": True}, "enable_hr"),
        ("/sdapi/v1/txt2img", {"n_iter": 1e9}, "n_iter"),
        ("/sdapi/v1/txt2img", {"batch_size": "2"}, "batch_size"),
        ("/sdapi/v1/txt2img", {"width": 10**6}, "8192"),
        ("/sdapi/v1/txt2img", {"seed": "x"}, "seed"),
        ("/sdapi/v1/txt2img", {"override_settings": {"sd_model_checkpoint": "x"}}, "embedded:base"),
        ("/sdapi/v1/txt2img", {"alwayson_scripts": []}, ""),
        ("/sdapi/v1/txt2img", {"alwayson_scripts": ["x"]}, "object"),
        ("/sdapi/v1/txt2img", {"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "ADetailer"),
        ("/sdapi/v1/txt2img", {"alwayson_scripts": {"controlnet": {"args": 3}}}, "list"),
        ("/sdapi/v1/txt2img", {"alwayson_scripts": {"controlnet": {"args": [3]}}}, "object"),
        ("/sdapi/v1/txt2img", unit(image="http://10.0.0.1/x.png"), "address"),
        ("/sdapi/v1/txt2img", unit(image="/etc/passwd"), "image"),
        ("/sdapi/v1/txt2img", unit(image=""), "nothing"),
        ("/sdapi/v1/txt2img", unit(model="../../x"), "controlnet-canny"),
        ("/sdapi/v1/txt2img", unit(module=7), "module_list"),
        ("/sdapi/v1/txt2img", unit(module="cany"), "module_list"),
        ("/sdapi/v1/txt2img", unit(weight="1"), "weight"),
        ("/sdapi/v1/txt2img", unit(control_mode=9), "control_mode"),
        ("/sdapi/v1/txt2img", unit(control_mode=[]), "control_mode"),
        ("/sdapi/v1/txt2img", unit(resize_mode="big"), "resize_mode"),
        ("/sdapi/v1/txt2img", unit(processor_res=2.5), "processor_res"),
        ("/sdapi/v1/img2img", {}, "init_images"),
        ("/sdapi/v1/img2img", {"init_images": [PHOTO, PHOTO]}, "2 pictures"),
        ("/sdapi/v1/img2img", {"init_images": [3]}, "base64"),
        ("/sdapi/v1/img2img", {"init_images": ["https://10.0.0.1/x.png"]}, "address"),
        ("/sdapi/v1/img2img", start(denoising_strength=0), "denoising_strength"),
        ("/sdapi/v1/img2img", start(denoising_strength=1.5), "denoising_strength"),
        ("/sdapi/v1/img2img", start(denoising_strength="1"), "denoising_strength"),
        ("/sdapi/v1/img2img", start(denoising_strength=0.001), "less than one"),
        ("/sdapi/v1/img2img", start(resize_mode=2, width=128), "resize and fill"),
        ("/sdapi/v1/img2img", start(resize_mode=7), "resize_mode"),
        ("/sdapi/v1/img2img", start(initial_noise_multiplier=1.2), "initial_noise_multiplier"),
        ("/sdapi/v1/img2img", start(mask=MASK, inpainting_fill=2), "latent noise"),
        ("/sdapi/v1/img2img", start(mask=MASK, inpainting_fill=3), "latent nothing"),
        ("/sdapi/v1/img2img", start(mask=MASK, inpainting_fill="x"), "inpainting_fill"),
        ("/sdapi/v1/img2img", start(mask=MASK, mask_blur=-1), "init.blur"),
        ("/sdapi/v1/img2img", start(mask=BLACK), "without anything white"),
        ("/sdapi/v1/img2img", start(mask=MASK) | unit(), "show the whole picture"),
        ("/sdapi/v1/nothing", {}, "/api/docs"),
        ("/sdapi/v1/options", {"sd_model_checkpoint": "nope"}, "embedded:base"),
        ("/controlnet/detect", {}, "controlnet_images"),
        ("/controlnet/detect", {"controlnet_images": [3]}, "base64"),
        ("/controlnet/detect", {"controlnet_images": ["AAAA"]}, "no picture format"),
        ("/controlnet/detect", {"controlnet_images": [PHOTO] * 17}, "1 to 16"),
        ("/controlnet/nothing", {}, "/api/docs"),
    ],
)
def test_mistakes(client: Any, path: str, body: dict[str, Any], says: str) -> None:
    if path.endswith("2img"):
        body = {**ASKED, **body}
    answer = client.post(path, json=body)
    if not says:
        assert answer.status_code == 200
        return
    assert 400 <= answer.status_code < 500, answer.text
    assert says in answer.json()["message"], answer.text


ORIGINAL = {"mask": MASK, "inpainting_fill": 1, "inpaint_full_res": False}


@pytest.mark.parametrize(
    ("changes", "init"),
    [
        ({}, {}),
        ({"denoising_strength": 1, "resize_mode": 1}, {"strength": 1.0, "resize": "crop"}),
        (ORIGINAL, {"mask": PAINTED}),
        ({**ORIGINAL, "mask_blur": 0}, {"mask": PAINTED, "blur": 0}),
        ({**ORIGINAL, "inpainting_mask_invert": 1}, {"mask": PAINTED.point(lambda value: 255 - value)}),
        (
            {**ORIGINAL, "inpaint_full_res": True, "inpaint_full_res_padding": 8},
            {"mask": PAINTED, "margin": 8},
        ),
        ({**ORIGINAL, "inpainting_fill": 2, "denoising_strength": 1.0}, {"mask": PAINTED, "strength": 1.0}),
        ({**ORIGINAL, "mask": encode(PAINTED.resize((32, 32), 0))}, None),
    ],
)
def test_image_to_image_is_the_init_that_it_means(
    client: Any, changes: dict[str, Any], init: dict[str, Any] | None
) -> None:
    answer = client.post("/sdapi/v1/img2img", json={**ASKED, **start(**changes)})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert json.loads(told["info"])["denoising_strength"] == changes.get("denoising_strength", 0.7)
    assert "init_images" not in told["parameters"]
    if init is None:
        return
    given = {"image": photo(), "strength": 0.7, **init}
    recipe = {"prompt": "a house", "seed": 5, "steps": 3, "width": 64, "height": 64, "init": given}
    assert np.array_equal(opened(told["images"][0]), np.asarray(ck.run(recipe)[0]))


def test_image_to_image_with_a_unit(client: Any) -> None:
    body = {**ASKED, **start(), **unit()}
    told = client.post("/sdapi/v1/img2img", json=body).json()
    control = {"module": "embedded:controlnet-canny", "image": photo(), **CANNY}
    recipe = {"prompt": "a house", "seed": 5, "steps": 3, "width": 64, "height": 64, "controls": [control]}
    recipe["init"] = {"image": photo(), "strength": 0.7}
    assert np.array_equal(opened(told["images"][0]), np.asarray(ck.run(recipe)[0]))


def test_what_is_masked_begins_with_the_colours_around_it() -> None:
    from controlkit.ui.inits import filled

    ramp = np.zeros((40, 90, 3), np.uint8)
    ramp[:, :, 0] = np.linspace(20, 220, 90).astype(np.uint8)
    ramp[10:30, 30:60] = (0, 255, 0)
    region = Image.new("L", (90, 40), 0)
    region.paste(255, (30, 10, 60, 30))
    made = np.asarray(filled(Image.fromarray(ramp), region)).astype(int)
    outside = np.asarray(region) == 0
    assert np.array_equal(made[outside], ramp[outside])
    inside = made[10:30, 30:60]
    assert inside[..., 1].max() == 0
    wanted = np.linspace(20, 220, 90)[30:60]
    assert np.abs(inside[..., 0] - wanted).max() < 40
    assert np.abs(np.diff(inside[..., 0], axis=1)).max() < 25
    everything = filled(Image.fromarray(ramp), Image.new("L", (90, 40), 255))
    assert everything.getcolors() == [(3600, (127, 127, 127))]


def test_a_job_that_fails_is_told(client: Any, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.jobs, "_keep", lambda *_: 1 / 0)
    answer = client.post("/sdapi/v1/txt2img", json=ASKED)
    assert answer.status_code == 422
    assert "ZeroDivisionError" in answer.json()["message"]


def test_sdwebuiapi_works_unchanged(client: Any) -> None:
    """The client library itself, its session exchanged for one without a socket."""
    webuiapi = pytest.importorskip("webuiapi", reason="no sdwebuiapi: pip install webuiapi")
    api = webuiapi.WebUIApi(port=7860)
    api.session = client
    assert api.controlnet_version() == 2
    assert "embedded:controlnet-canny" in api.controlnet_model_list()
    assert "canny" in api.controlnet_module_list()
    assert api.util_get_model_names() == ["embedded:base"]
    assert "DDIM" in api.util_get_sampler_names()
    api.util_set_model("embedded:base")
    maps = api.controlnet_detect([photo()], module="canny", processor_res=64)
    assert np.array_equal(np.asarray(maps.image), np.asarray(ck.preprocess(photo(), "canny")))
    wanted = webuiapi.ControlNetUnit(
        image=photo(),
        module="canny",
        model="controlnet-canny",
        processor_res=64,
        threshold_a=100,
        threshold_b=200,
    )
    made = api.txt2img(
        prompt="a house", seed=5, steps=3, width=64, height=64, cfg_scale=3.0, sampler_name="DDIM",
        controlnet_units=[wanted],
    )  # fmt: skip
    control = {"module": "embedded:controlnet-canny", "image": photo(), "detect": "canny", "resize": "pad"}
    recipe = {
        "prompt": "a house", "seed": 5, "steps": 3, "width": 64, "height": 64, "scheduler": "DDIMScheduler",
        "controls": [control],
    }  # fmt: skip
    assert np.array_equal(np.asarray(made.image), np.asarray(ck.run(recipe)[0]))
    assert made.info["seed"] == 5
    wide = photo(96).crop((0, 0, 96, 80))
    painted = Image.new("L", wide.size)
    painted.paste(255, (20, 20, 50, 50))
    made = api.img2img(
        [wide], mask_image=painted, denoising_strength=0.8, prompt="a house", seed=5, steps=3, width=64,
        height=64, sampler_name="DDIM",
    )  # fmt: skip
    assert made.image.size == wide.size
    same = np.asarray(made.image)[60:] == np.asarray(wide)[60:]
    assert same.all()
    assert not np.array_equal(np.asarray(made.image), np.asarray(wide))
