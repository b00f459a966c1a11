"""The Preview button: the map as the module sees it, and what is doubtful; without the web UI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.errors import ParameterError
from controlkit.hosts.webui import preview
from controlkit.hosts.webui.units import Unit
from controlkit.images import fit
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.adapters.uni_controlnet.builders import uni

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 96, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)
BLANK: dict[str, Any] = {
    "image": PHOTO,
    "mask": None,
    "model": "None",
    "detector": "None",
    "options": "",
    "resize": "stretch",
    "size": 0,
    "pixel_perfect": False,
    "condition": "None",
}


def press(module: Any = None, size: tuple[Any, Any] = (64, 32), **given: Any) -> tuple[Any, str]:
    """What the button answers."""
    values = {**BLANK, **given}
    return preview.previewer(lambda unit: module)(*(values[name] for name in preview.FIELDS), *size)


def test_the_blank_fields_are_the_button_s() -> None:
    assert tuple(BLANK) == preview.FIELDS


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_the_map_is_what_the_module_would_see(resize: Any) -> None:
    picture, said = press(tiny.controlnet(), resize=resize)
    rows, _ = fit(torch.from_numpy(PIXELS).movedim(-1, 0)[None] / 255, (32, 64), resize=resize)
    assert picture.size == (64, 32)
    expected = (rows[0].clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    assert np.array_equal(np.asarray(picture), expected)
    assert "64x32, as the module sees it" in said


def test_the_detector_s_map_without_a_module_and_with_one_of_one_channel() -> None:
    edges = np.asarray(ck.preprocess(PHOTO, "canny", low_threshold=30, high_threshold=60))
    given: dict[str, Any] = {"detector": "canny", "options": "low_threshold: 30, high_threshold: 60"}
    for module in (None, tiny.t2i_adapter(in_channels=1)):
        picture, _ = press(module, size=(96, 48), **given)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), edges)


def test_a_detector_at_the_picture_s_size() -> None:
    small, _ = press(size=(32, 16), detector="canny", pixel_perfect=True)
    assert np.array_equal(np.asarray(small), np.asarray(ck.preprocess(PHOTO, "canny", size=16)))


def test_what_is_doubtful_is_in_bold_and_written_as_text() -> None:
    _, said = press(tiny.controlnet(), condition="canny")
    assert "<b>doubtful" in said
    _, plain = press(tiny.controlnet(), condition="None")
    assert "<b>" not in plain
    _, wrong = press(detector="<script>alert(1)</script>")
    assert "<script>" not in wrong
    assert "&lt;script&gt;" in wrong


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image": None}, "a picture"),
        ({"image": "https://example.org/a.png"}, "Nothing is fetched"),
        ({"detector": "none such"}, "none such"),
        ({"detector": "canny", "options": "low_threshold"}, "name: value"),
        ({"detector": "canny", "options": "low_treshold: 3"}, "low_treshold"),
    ],
)
def test_an_error_is_shown_and_not_raised(given: dict[str, Any], told: str) -> None:
    picture, said = press(**given)
    assert picture is None
    assert said.startswith("<p>⚠ <b>")
    assert told in said


def test_a_file_that_cannot_be_read_is_told() -> None:
    def refuse(unit: Unit) -> Any:
        raise ParameterError("model", found="nothing", expected="a file")

    values = [BLANK[name] for name in preview.FIELDS]
    picture, said = preview.previewer(refuse)(*values, None, None)
    assert picture is None
    assert "a file" in said


def test_the_size_is_512_where_the_sliders_are_not_known() -> None:
    picture, _ = press(size=(None, None))
    assert picture.size == (512, 512)


def test_of_an_image_prompt_the_middle_square_is_shown() -> None:
    picture, said = press(peers.load(tiny.unet(), "plain"))
    assert picture.size == (224, 224)
    middle = PHOTO.crop((24, 0, 72, 48)).resize((224, 224))
    assert np.array_equal(np.asarray(picture), np.asarray(middle))
    assert "the middle square" in said


def test_of_several_maps_of_one_file_the_map_or_the_content() -> None:
    module = uni()
    assert press(module, condition="content")[0].size == (224, 224)
    picture, _ = press(module, condition="canny")
    assert picture.size == (64, 32)
