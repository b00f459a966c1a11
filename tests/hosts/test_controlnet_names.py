"""The words of sd-webui-controlnet's units, in ours."""

from __future__ import annotations

from typing import Any

import pytest

from controlkit import ParameterError
from controlkit.hosts.controlnet_names import (
    ALIASES,
    SLIDERS,
    detector_of,
    perfect_side,
    union_type,
    written,
)
from controlkit.hosts.written import read_options
from controlkit.preprocessors import detectors

KNOWN = {info.name: info for info in detectors()}


def test_every_name_stands_for_a_detector_that_there_is_and_options_that_it_has() -> None:
    for theirs, ours in ALIASES.items():
        assert theirs not in KNOWN, "it could not be reached"
        name, options = detector_of(theirs)
        assert name == ours in KNOWN
        assert options.keys() <= {option.name for option in KNOWN[ours].options}


@pytest.mark.parametrize("name", SLIDERS)
def test_every_slider_is_an_option_with_a_range(name: str) -> None:
    options = {option.name: option for option in KNOWN[name].options}
    for slider in SLIDERS[name]:
        low, high = options[slider].low, options[slider].high
        assert low is not None
        assert high is not None
        assert low < high


@pytest.mark.parametrize("name", KNOWN)
def test_every_name_of_ours_is_itself(name: str) -> None:
    assert detector_of(f" {name.upper()} ") == (name, {})


@pytest.mark.parametrize("name", ["none", "None", "", "  "])
def test_no_module(name: str) -> None:
    assert detector_of(name) == (None, {})


@pytest.mark.parametrize("name", ["cany", None, 3, "../canny", "reference_only", "ip-adapter_face_id"])
def test_what_is_no_module_is_refused(name: Any) -> None:
    with pytest.raises(ParameterError, match="module_list"):
        detector_of(name)


@pytest.mark.parametrize(
    ("module", "low", "high", "options"),
    [
        ("canny", 60, 140, {"low_threshold": 60, "high_threshold": 140}),
        ("canny", 140, 60, {"low_threshold": 60, "high_threshold": 140}),
        ("canny", -1, -1, {}),
        ("canny", 60, 10**6, {"low_threshold": 60}),
        ("canny", True, "60", {}),
        ("canny", float("nan"), None, {}),
        ("blur_gaussian", 3.5, 7, {"sigma": 3.5}),
        ("scribble_xdog", 20, -1, {"threshold": 20}),
        ("mlsd", 0.2, 0.3, {"score": 0.2, "length": 0.3}),
        ("openpose_full", 9, 9, {"hands": True, "face": True}),
        ("recolor_intensity", 1.5, -1, {"method": "intensity", "gamma": 1.5}),
    ],
)
def test_sliders(module: str, low: Any, high: Any, options: dict[str, Any]) -> None:
    _, found = detector_of(module, low, high)
    assert found == options
    for name, value in found.items():
        assert isinstance(
            value,
            type(next(o.default for o in KNOWN[detector_of(module)[0] or ""].options if o.name == name)),
        )


@pytest.mark.parametrize(
    ("photo", "picture", "resize", "side"),
    [
        ((96, 48), (64, 128), "crop", 128),
        ((96, 48), (64, 128), "stretch", 128),
        ((96, 48), (64, 128), "pad", 32),
        ((512, 512), (512, 768), "crop", 768),
        ((512, 512), (512, 768), "pad", 512),
        ((1, 10000), (1, 1), "pad", 1),
    ],
)
def test_a_map_with_the_picture_s_pixels(
    photo: tuple[int, int], picture: tuple[int, int], resize: str, side: int
) -> None:
    assert perfect_side(photo, picture, resize) == side


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Depth", "depth"),
        ("Hard Edge", "canny"),
        (" tile ", "tile"),
        ("Unknown", None),
        (None, None),
        ("", None),
    ],
)
def test_types_of_a_union_s_maps(given: Any, name: str | None) -> None:
    assert union_type(given) == name


@pytest.mark.parametrize("given", ["edge", 3, ["Depth"]])
def test_what_is_no_type_is_refused(given: Any) -> None:
    with pytest.raises(ParameterError, match="one of openpose"):
        union_type(given)


def test_options_are_written_as_they_are_read() -> None:
    options = {"low_threshold": 60, "sigma": 1.5, "hands": True, "method": "intensity", "left": None}
    assert read_options(written(options)) == options
