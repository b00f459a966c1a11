"""The one resolver: nothing outside its folders, whatever a client names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import controlkit as ck
from controlkit.ui import presets
from controlkit.ui.errors import Refused
from tests.ui.conftest import photo, recipe

OUTSIDE = [
    "../secret.png",
    "..\\secret.png",
    "/etc/passwd",
    "C:\\secret.png",
    "\\\\host\\share\\x.png",
    "%2e%2e/secret.png",
    "a/../../secret.png",
    "x\0.png",
    "x\n.png",
    "con.png",
    ".hidden.png",
    "~root.png",
    "a" * 300 + ".png",
    "",
    "http://127.0.0.1/x.png",
    "x.json",
    "🙂.png",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_output_folder(places: Any, name: str) -> None:
    with pytest.raises(Refused) as refused:
        places.result(name)
    assert 400 <= refused.value.status < 500
    assert "secret" not in str(refused.value) or name in str(refused.value) or "\\\\" in str(refused.value)


def test_links_out_of_the_output_folder_are_refused(places: Any, tmp_path: Path) -> None:
    places.output.mkdir()
    (places.output / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Refused, match="leads out"):
        places.result("link.png")
    assert places.pictures() == []


def test_pictures_come_newest_first(places: Any) -> None:
    assert places.pictures() == []
    places.output.mkdir()
    for name in ("a.png", "b.png", ".c.png", "d.txt"):
        (places.output / name).write_bytes(b"")
    names = [path.name for path in places.pictures()]
    assert sorted(names) == ["a.png", "b.png"]
    assert places.result("a.png").name == "a.png"


CONTROL = recipe()["controls"][0]


@pytest.mark.parametrize(
    ("control", "says"),
    [
        ({"image": {"path": "secret.png"}}, "a path"),
        ({"mask": {"path": "secret.png"}}, "a path"),
        ({"module": {"source": "file:x", "subfolder": "../.."}}, ".."),
        ({"module": {"source": "file:x", "weight_name": "/etc/passwd"}}, "absolute"),
        ({"module": "file:../secret.png"}, None),
        ({"detect": "hed", "detect_options": {"weights": "secret.png"}}, "weights"),
        ({"detect_options": {"box": "../secret.png"}}, "reads as a path"),
        ({"detect_options": {"deep": {"deeper": {"weights": "x"}}}}, "weights"),
        ({"detect_options": {"list": ["a", "C:\\x"]}}, "reads as a path"),
        ({"options": {"encoder": "secret"}}, "encoder"),
        ({"options": {"content": "https://example.org/x.png"}}, "reads as a path"),
    ],
)
def test_recipes_that_lead_out_are_refused(service: Any, control: dict[str, Any], says: str | None) -> None:
    wanted = ck.Recipe.load(recipe(controls=[{**CONTROL, **control}]))
    if says is None:  # known when the weights are looked for
        job = service.jobs.submit(wanted)
        assert job.over.wait(60)
        assert job.state == "failed"
        assert job.error["code"] == "CK-S14"
        return
    with pytest.raises(ck.ControlKitError) as refused:
        service.jobs.submit(wanted)
    assert says in str(refused.value)
    assert refused.value.what.startswith("controls[0]")


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_picture_to_start_from_that_leads_out_is_refused(service: Any, name: str) -> None:
    init = {"image": photo(), name: {"path": "secret.png"}}
    with pytest.raises(ck.RecipeError, match=f"init.{name}; found a path"):
        service.jobs.submit(ck.Recipe.load(recipe(init=init)))


def test_guidance_that_leads_out_is_refused(service: Any) -> None:
    control = {"guidance": "color", "target": "red", "options": {"mask": {"path": "secret.png"}}}
    with pytest.raises(ck.RecipeError, match="a path"):
        service.jobs.submit(ck.Recipe.load(recipe(controls=[control])))


def test_presets_are_saved_by_name_and_names_lead_nowhere_else(places: Any) -> None:
    wanted = ck.Recipe(
        prompt="a house", controls=({"module": "embedded:controlnet-canny", "image": photo()},)
    )
    assert presets.names(places) == []
    presets.save(places, "my edges", wanted)
    presets.save(places, "my edges", wanted)
    assert presets.names(places) == ["my edges"]
    assert presets.load(places, "my edges") == wanted
    with pytest.raises(ck.ParameterError, match="my edges"):
        presets.load(places, "other")
    for name in ("../x", "a/b", "", "con", "x" * 80, ".x", "a\n"):
        with pytest.raises(Refused):
            presets.save(places, name, wanted)
