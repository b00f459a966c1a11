"""Guidance in recipes: the ready-made functions by name, their networks and pictures, there and back."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import controlkit as ck
from controlkit import embedded
from controlkit.recipes import guides
from tests import tiny
from tests.guidance.cases import Net, Pair, classifier

pytestmark = pytest.mark.usefixtures("tiny_embedded", "guides_of_the_tiny_model")


@pytest.fixture
def guides_of_the_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded networks that guide, replaced by tiny random ones."""
    known = {"controlnet-canny": tiny.controlnet, "classifier": classifier}
    monkeypatch.setattr(embedded, "names", lambda: list(known))
    monkeypatch.setattr(embedded, "load", lambda name: known[name]())
    monkeypatch.setattr(embedded, "clip", Pair, raising=False)
    monkeypatch.setattr(embedded, "segmentation", lambda: Net(4, 5, pool=False), raising=False)


def lines() -> Image.Image:
    picture = Image.new("L", (64, 64))
    ImageDraw.Draw(picture).rectangle((16, 16, 48, 48), outline=255)
    return picture


def flat() -> Image.Image:
    picture = Image.new("RGB", (64, 64), embedded.PALETTE[0])
    picture.paste(embedded.PALETTE[2], (16, 16, 48, 48))
    return picture


def half() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask


def steered(*controls: dict[str, Any], **more: Any) -> ck.Recipe:
    return ck.Recipe(prompt="a cube", seed=3, steps=2, width=64, height=64, controls=controls, **more)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


@cache
def plain() -> np.ndarray:
    """What the same recipe makes without guidance."""
    return pixels(ck.run(steered())[0])


PARTS: dict[str, dict[str, Any]] = {
    "color": {"guidance": "color", "target": "red", "options": {"sigma": 0.2}},
    "color of numbers": {"guidance": "color", "target": [226, 44, 40]},
    "color of a region": {"guidance": "color", "target": "#e22c28", "options": {"mask": half()}},
    "palette": {"guidance": "color", "target": ["red", "blue"], "options": {"match": "palette"}},
    "edges": {"guidance": "edges", "image": lines(), "normalize": True},
    "region": {"guidance": "region", "image": flat(), "options": {"mask": half(), "sigma": 0.2}},
    "colours of regions": {"guidance": "segmentation", "image": flat()},
    "segmentation": {
        "guidance": "segmentation",
        "image": flat(),
        "options": {"network": "embedded:segmentation"},
    },
    "classifier": {"guidance": "classifier", "target": 3, "options": {"network": "embedded:classifier"}},
    "text": {"guidance": "text", "target": "a red cube", "options": {"model": "embedded:clip"}},
    "masked": {"guidance": "color", "target": "red", "mask": half(), "every": 2},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_guided_picture_carries_the_recipe_that_makes_it_again(name: str) -> None:
    part = {"scale": 0.5, "normalize": True, **PARTS[name]}
    (guided,) = ck.run(steered(part))
    assert not np.array_equal(pixels(guided), plain())
    carried = ck.Recipe.load(guided)
    assert ck.Recipe.load(carried.to_json()) == carried
    (again,) = ck.run(carried)
    assert np.array_equal(pixels(guided), pixels(again))
    (control,) = carried.controls
    assert control.guidance == part["guidance"]
    assert control.scale == 0.5


def test_what_a_function_wants_to_see_is_left_to_it_unless_said() -> None:
    assert "sees" not in json.loads(steered(PARTS["color"]).to_json())["controls"][0]
    with pytest.raises(ck.ControlKitError, match="channels"):
        ck.run(steered({**PARTS["color"], "sees": "clean"}))


def test_pictures_in_options_may_lie_beside_the_recipe(tmp_path: Path) -> None:
    half().save(tmp_path / "half.png")
    part = {"guidance": "color", "target": "red", "options": {"mask": "half.png"}, "scale": 20}
    recipe = ck.Recipe.load(steered(part).to_json(), base=tmp_path)
    (guided,) = ck.run(recipe)
    (control,) = ck.Recipe.load(guided).controls
    assert set(dict[str, Any](control.options)["mask"]) == {"data"}  # complete in itself
    (again,) = ck.run(ck.Recipe.load(guided))
    assert np.array_equal(pixels(guided), pixels(again))


def test_modules_of_guidance_are_named_with_their_digest(tmp_path: Path) -> None:
    classifier().save(tmp_path / "classes")
    source = {"network": "file:classes"}
    recipe = steered({"guidance": "classifier", "target": 1, "options": source, "scale": 20})
    (guided,) = ck.run(recipe, models=tmp_path)
    (control,) = ck.Recipe.load(guided).controls
    network: Any = control.options["network"]
    assert network["source"] == "file:classes"
    assert len(network["digest"]) == 64
    wrong = {**network, "digest": "0" * 64}
    with pytest.raises(ck.RecipeError, match="SHA-256"):
        ck.run(
            steered({"guidance": "classifier", "target": 1, "options": {"network": wrong}}), models=tmp_path
        )


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a name nearly right": ({"guidance": "colour", "target": "red"}, ck.RecipeError, "color"),
    "an unknown colour": ({"guidance": "color", "target": "reddish"}, ck.ParameterError, "reddish"),
    "an option that it has not": (
        {"guidance": "edges", "image": lines(), "options": {"blur": 1}},
        ck.ParameterError,
        "options that do not fit",
    ),
    "no network": ({"guidance": "classifier", "target": 1}, ck.ParameterError, "options that do not fit"),
    "an unknown network": (
        {"guidance": "classifier", "target": 1, "options": {"network": "embedded:resnet"}},
        ck.RecipeError,
        "embedded:resnet",
    ),
    "a network that is no source": (
        {"guidance": "classifier", "target": 1, "options": {"network": "resnet"}},
        ck.ControlKitError,
        "embedded:NAME",
    ),
    "a network of numbers": (
        {"guidance": "text", "target": "a", "options": {"model": 3}},
        ck.ParameterError,
        "source",
    ),
    "a mask outside its folder": (
        {"guidance": "color", "target": "red", "options": {"mask": "../half.png"}},
        ck.ParameterError,
        r"\.\.",
    ),
    "a mask that is not there": (
        {"guidance": "color", "target": "red", "options": {"mask": {"path": "absent.png"}}},
        ck.RecipeError,
        "absent.png",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_is_one_sentence(name: str, tmp_path: Path) -> None:
    part, kind, says = REFUSED[name]
    with pytest.raises(kind, match=says) as caught:
        ck.run(ck.Recipe.load({"prompt": "a", "steps": 2, "controls": [part]}, base=tmp_path))
    assert "\n" not in str(caught.value)


def test_every_ready_made_function_but_sums_has_its_name_in_recipes() -> None:
    assert set(guides.BUILT_IN) == set(ck.guidance.__all__) - {"Guidance", "Likelihood", "total"}
    for name in guides.BUILT_IN:
        assert guides.maker_of(name) is getattr(ck.guidance, name)
