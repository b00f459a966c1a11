"""AUTOMATIC1111's web UI for real with image prompts, content, styles, and files of several maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.hosts.webui.encoders import AUTOMATIC
from tests.hosts.webui.kinds import FILE
from tests.hosts.webui.server import Failed, Server, sent
from tests.hosts.webui.test_real import CLOSE, HALF, MAP, PHOTO, A, B, apart, loop, module, unit

IP, PLUS, STYLE, UNI, UNION = (f"{name}/{FILE}" for name in ("ip-plain", "ip-plus", "style", "uni", "union"))
REGION = HALF[..., 0] / 255.0


def encoder(webui: Server) -> Any:
    return webui.base / "models" / "clip_vision" / "tiny-clip"


def on(webui: Server, model: str, *args: Any, **options: Any) -> Any:
    """A module of the web UI's folder, bound, with the encoder where it reads pictures."""
    reading = {} if model == UNION else {"encoder": encoder(webui)}
    return module(webui, model).on(*args, **reading, **options)


CASES: dict[str, tuple[list[dict[str, Any]], Callable[[Server], list[Any]]]] = {
    "image prompt": ([unit(IP, PHOTO)], lambda w: [on(w, IP, PHOTO)]),
    "image prompt plus": ([unit(PLUS, PHOTO, weight=0.7)], lambda w: [on(w, PLUS, PHOTO, scale=0.7)]),
    "by its encoder's name": ([unit(IP, PHOTO, encoder="tiny-clip")], lambda w: [on(w, IP, PHOTO)]),
    "as sd-webui-controlnet asks": (
        [unit(IP, PHOTO, module="ip-adapter_clip_sd15", control_mode="Balanced", guidance_end=0.5)],
        lambda w: [on(w, IP, PHOTO, end=0.5)],
    ),
    "in a region, for the prompt alone": (
        [unit(IP, PHOTO, mask=HALF, mode="control", start=0.25)],
        lambda w: [on(w, IP, PHOTO, mask=REGION, mode="control", start=0.25)],
    ),
    "two image prompts and a map": (
        [unit(IP, PHOTO), unit(PLUS, MAP, weight=0.5), unit(A)],
        lambda w: [on(w, IP, PHOTO), on(w, PLUS, MAP, scale=0.5), module(w, A).on(MAP)],
    ),
    "blocks of an image prompt": (
        [unit(IP, PHOTO, block_scales="1, 0, 0.5, 2, 1, 1, 0.25")],
        lambda w: [on(w, IP, PHOTO, block_scales=[1, 0, 0.5, 2, 1, 1, 0.25])],
    ),
    "style": ([unit(STYLE, PHOTO, end=0.5)], lambda w: [on(w, STYLE, PHOTO, end=0.5)]),
    "one map of several": (
        [unit(UNI, MAP, condition="canny")],
        lambda w: [on(w, UNI, {"canny": MAP})],
    ),
    "two maps and content": (
        [
            unit(UNI, MAP, condition="midas", weight=0.6),
            unit(UNI, PHOTO, detector="canny", weight=0.6),
            unit(UNI, PHOTO, condition="content", weight=0.8),
        ],
        lambda w: [
            on(
                w,
                UNI,
                {"midas": MAP, "canny": PHOTO},
                detect={"canny": "canny"},
                content=PHOTO,
                local_scale=0.6,
                global_scale=0.8,
            )
        ],
    ),
    "content alone": ([unit(UNI, PHOTO, condition="content")], lambda w: [on(w, UNI, content=PHOTO)]),
    "a union's types": (
        [unit(UNION, MAP, union_control_type="Depth", weight=0.5), unit(UNION, PHOTO, condition="canny")],
        lambda w: [on(w, UNION, {"depth": MAP, "canny": PHOTO}, scale={"depth": 0.5, "canny": 1.0})],
    ),
    "style tokens beside content": (
        [unit(STYLE, PHOTO), unit(UNI, MAP, condition="content"), unit(B)],
        lambda w: [on(w, STYLE, PHOTO), on(w, UNI, content=MAP), module(w, B).on(MAP)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_gives_the_latents_of_the_python_api(webui: Server, name: str) -> None:
    units, controls = CASES[name]
    made = webui.make(*units)
    assert apart(made.latents, loop(webui, made, *controls(webui))) < CLOSE
    assert apart(made.latents, webui.bare.latents) > 0.02, "it acts"
    assert webui.get("/controlkit-probe/hooks") == {"forward": 0}


def test_a_control_lora_is_completed_from_the_model_in_use(webui: Server) -> None:
    lora = f"lora/{FILE}"
    made = webui.make(unit(lora))
    assert apart(made.latents, loop(webui, made, module(webui, lora).on(MAP))) < CLOSE
    assert apart(made.latents, webui.bare.latents) > 0.02, "it acts"


def test_an_image_prompt_is_in_the_gradient_through_the_unet(webui: Server) -> None:
    guide = {"function": "color", "color": "blue", "strength": 0.5, "normalize": True, "through_unet": True}
    made = webui.make(unit(IP, PHOTO), guide)
    phi = ck.Guidance(ck.guidance.color(), "blue", scale=0.5, normalize=True, through_unet=True)
    assert apart(made.latents, loop(webui, made, on(webui, IP, PHOTO), phi)) < CLOSE


def test_halves_that_are_run_apart_attend_to_the_same(webui: Server) -> None:
    units = [unit(IP, PHOTO, mode="control"), unit(UNI, PHOTO, condition="content"), unit(STYLE, MAP)]
    together = webui.make(*units)
    halves = webui.make(*units, override_settings={"batch_cond_uncond": False})
    webui.post("/sdapi/v1/options", {"batch_cond_uncond": True})  # the web UI keeps it
    assert apart(together.latents, halves.latents) < CLOSE


def test_a_batch_attends_to_its_pictures(webui: Server) -> None:
    both = webui.make(unit(IP, PHOTO), batch_size=2)
    alone = [webui.make(unit(IP, PHOTO), seed=seed) for seed in (3, 4)]
    for row, one in zip(both.latents, alone, strict=True):
        assert apart(row[None], one.latents) < CLOSE


@pytest.mark.parametrize(
    ("units", "told"),
    [
        ([unit(IP, PHOTO, detector="canny")], "reads the picture itself"),
        ([unit(IP, PHOTO, mode="prompt")], "balanced"),
        ([unit(STYLE, PHOTO, mask=HALF)], "whole picture"),
        ([unit(UNI, MAP)], "what its map shows is not told"),
        ([unit(UNI, MAP, condition="canny"), unit(UNI, MAP, condition="hed", weight=0.5)], "weight"),
        ([unit(IP, PHOTO, encoder="none such")], AUTOMATIC),
        ([unit(IP, PHOTO, module="ip-adapter_face_id")], "detector"),
    ],
)
def test_what_does_not_go_together_is_told(webui: Server, units: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(Failed, match=told):
        webui.make(*units)
    assert torch.equal(webui.make().latents, webui.bare.latents)
    assert webui.get("/controlkit-probe/hooks") == {"forward": 0}


def test_detectors_by_the_names_and_sliders_of_sd_webui_controlnet(webui: Server) -> None:
    photo = Image.fromarray(PHOTO).resize((96, 128))
    theirs = {"module": "canny", "threshold_a": 60, "threshold_b": 140, "processor_res": 64}
    ours = {"detector": "canny", "options": "low_threshold: 60, high_threshold: 140, size: 64"}
    assert torch.equal(
        webui.make(unit(A, photo, **theirs)).latents, webui.make(unit(A, photo, **ours)).latents
    )
    perfect = unit(A, photo, module="lineart_standard", pixel_perfect=True, resize_mode="Crop and Resize")
    made = webui.make(perfect)
    control = module(webui, A).on(photo, detect="lineart", detect_options={"size": 64}, resize="crop")
    assert apart(made.latents, loop(webui, made, control)) < CLOSE
    told = webui.make(unit(A, sent(photo) and photo, module="blur_gaussian", threshold_a=3.0)).infotext
    assert "detector=blur" in told
    assert "options=sigma: 3" in told.replace('"', "")
