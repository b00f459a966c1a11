"""What the panel and requests ask for, and the pictures in it; without the web UI."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlkit import ControlKitError, ParameterError
from controlkit.hosts.webui import files, pictures, units
from controlkit.hosts.webui.units import COUNT, GUIDE_FIELDS, UNIT_FIELDS, Guide, Unit

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def flat(*made: Unit, guide: Guide | None = None) -> list[Any]:
    """As the panel hands them over."""
    rows = [*made, *[Unit()] * (COUNT - len(made))]
    guides = guide or Guide()
    values = [getattr(row, name) for row in rows for name in UNIT_FIELDS]
    return values + [getattr(guides, name) for name in GUIDE_FIELDS]


def test_the_panels_fields() -> None:
    second, guide = Unit(True, "a.pth", PICTURE, "canny", "x: 1", 0.5), Guide(True, "edges", image=PICTURE)
    assert units.read(flat(Unit(), second, guide=guide)) == ([(1, second)], [(0, guide)])
    assert units.read(flat()) == ([], [])
    assert units.read([]) == ([], [])


@pytest.mark.parametrize(
    ("given", "unit"),
    [
        ({"model": "a.pth"}, Unit(True, "a.pth")),
        ({"model": "a.pth", "enabled": False}, None),
        (
            {
                "input_image": "x",
                "module": "none",
                "model": "a [1234]",
                "weight": 1,
                "guidance_start": 0.1,
                "guidance_end": 0.9,
                "control_mode": "ControlNet is more important",
                "resize_mode": 2,
                "hr_option": "High res only",
                "pixel_perfect": True,
                "threshold_a": -1,
            },
            Unit(
                *(True, "a [1234]", "x", "None", "", 1.0, 0.1, 0.9, "control", "pad", None, "hires"),
                pixel_perfect=True,
            ),
        ),
        ({"model": "a", "image": {"image": "x", "mask": "m"}}, None),
        ({"model": "a", "weight": None, "mode": "Prompt"}, Unit(True, "a", mode="prompt")),
    ],
)
def test_units_of_requests(given: dict[str, Any], unit: Unit | None) -> None:
    found, guides = units.read([given])
    if "image" in given:
        assert found[0][1].mask == "m"
    else:
        assert found == ([] if unit is None else [(0, unit)])
    assert guides == []


def test_guidance_of_requests() -> None:
    found, guides = units.read([{"model": "a"}, {"function": "color", "strength": 2}])
    assert [number for number, _ in found] == [0]
    assert guides == [(1, Guide(True, "color", strength=2.0))]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "a", "wieght": 1}, "wieght"),
        ({"model": "a", "weight": "1"}, "a number"),
        ({"model": "a", "mode": 7}, "balanced, prompt, control"),
        ({"model": "a", "mode": ["prompt"]}, "balanced, prompt, control"),
        ({"model": "a", "union_control_type": ["Depth"]}, "one of openpose"),
        ({"model": 3}, "text"),
        ({"function": "colour"}, "color, edges, region"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        units.read([given])


@pytest.mark.parametrize(
    "asked",
    [
        Unit(
            True, "a/b.pth", None, "canny", "low: 1, high: 2", 0.7, 0.1, 0.9, "prompt", "crop", None, "hires"
        ),
        Unit(True, "a.pth"),
        Guide(True, "color", "#ff0000", None, None, -2.0, 0.0, 0.5, 1.0, True, True),
    ],
)
def test_a_pictures_parameters_restore_the_fields(asked: Any) -> None:
    assert type(asked)(**units.restore(units.describe(asked), type(asked))) == asked


def test_parameters_of_another_version_are_left_out() -> None:
    assert units.restore("model=a; weight=lots; colour=red; junk", Unit) == {"enabled": True, "model": "a"}


def encoded(picture: Image.Image, head: str = "") -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return head + base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_pictures_come_as_base64(head: str) -> None:
    text = encoded(PICTURE, head)
    for value in (text, {"image": text, "mask": None}):
        assert np.array_equal(np.asarray(pictures.read(value, "image")), np.asarray(PICTURE))
    assert len(pictures.read([text, None, text], "image")) == 2
    assert pictures.read("", "image") is None
    assert pictures.read(PICTURE, "image") is PICTURE


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("https://example.org/a.png", "Nothing is fetched"),
        ("file:///etc/passwd", "Nothing is fetched"),
        ("/etc/passwd", "base64|image"),
        ("$$$$", "base64"),
        (base64.b64encode(b"%PDF-1.4 and more").decode(), "PDF"),
        (3, "a int"),
    ],
)
def test_what_is_no_picture_is_refused(value: Any, told: str) -> None:
    with pytest.raises(ControlKitError, match=told):
        pictures.read(value, "image")


def test_too_much_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGEST", 100)
    with pytest.raises(ParameterError, match="at most"):
        pictures.read("A" * 1000, "image")


def test_files_are_found_by_name_and_nothing_else_is_read(tmp_path: Any) -> None:
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    for place in (own / "a.pth", own / "sub" / "b.safetensors", own / "note.txt", theirs / "a.pth"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (tmp_path / "secret.pth").touch()
    folders = [own, theirs, tmp_path / "absent"]
    assert list(files.listed(folders)) == ["a.pth", "sub/b.safetensors"]
    assert files.path_of("a.pth", folders) == own / "a.pth"
    assert files.path_of("sub/b [0123abcd]", folders) == own / "sub" / "b.safetensors"
    for name in ("../secret.pth", str(tmp_path / "secret.pth"), "note.txt", "", "c.pth"):
        with pytest.raises(ParameterError, match=r"a\.pth, sub/b\.safetensors"):
            files.path_of(name, folders)
    with pytest.raises(ParameterError, match="absent"):
        files.path_of("c.pth", folders[2:])
