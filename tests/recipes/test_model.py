"""What a recipe accepts, what it refuses, and how it says so."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import controlkit as ck
from controlkit.recipes.rules import MAX_SEED

ROOT = Path(__file__).resolve().parents[2]
CONTROL: dict[str, Any] = {"module": "embedded:controlnet-canny", "image": {"path": "map.png"}}


def with_control(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a", "controls": [{**CONTROL, **changes}]}


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompt": "a", "width": 33, "height": 35}, ck.ParameterError, "32 and 40"),
    ({"prompt": "a", "width": 0}, ck.ParameterError, "width"),
    ({"prompt": "a", "height": -8}, ck.ParameterError, "height"),
    ({"prompt": "a", "width": 64.0}, ck.ParameterError, "width"),
    ({"prompt": "a", "width": 80_000}, ck.ParameterError, "width"),
    ({"prompt": "a", "steps": 0}, ck.ParameterError, "steps"),
    ({"prompt": "a", "steps": -3}, ck.ParameterError, "steps"),
    ({"prompt": "a", "steps": 2.5}, ck.ParameterError, "steps"),
    ({"prompt": "a", "steps": 5000}, ck.ParameterError, "steps"),
    ({"prompt": "a", "steps": True}, ck.ParameterError, "steps"),
    ({"prompt": "a", "seed": -1}, ck.ParameterError, "seed"),
    ({"prompt": "a", "seed": MAX_SEED + 1}, ck.ParameterError, "seed"),
    ({"prompt": "a", "seed": "3"}, ck.ParameterError, "seed"),
    ({"prompt": "a", "images": 0}, ck.ParameterError, "images"),
    ({"prompt": "a", "guidance_scale": float("nan")}, ck.ParameterError, "guidance_scale"),
    ({"prompt": "a", "guidance_scale": -1}, ck.ParameterError, "guidance_scale"),
    ({"prompt": 3}, ck.ParameterError, "prompt"),
    ({}, ck.RecipeError, "prompt"),
    ({"prompt": "a", "stepz": 3}, ck.RecipeError, "Did you mean steps"),
    ({"prompt": "a", "recipe": 2}, ck.RecipeError, "recipe"),
    ({"prompt": "a", "controls": {}}, ck.RecipeError, "controls"),
    ({"prompt": "a", "controls": [3]}, ck.RecipeError, r"controls\[0\]"),
    ({"prompt": "a", "scheduler": "os.system"}, ck.ParameterError, "scheduler"),
    ({"prompt": "a", "model": "/srv/model"}, ck.ParameterError, "model.source"),
    (with_control(scale=float("inf")), ck.ParameterError, r"controls\[0\].scale"),
    (with_control(scale="1"), ck.ParameterError, r"controls\[0\].scale"),
    (with_control(scale=1e6), ck.ParameterError, r"controls\[0\].scale"),
    (with_control(scale=[[0.5, 1], [0, 1]]), ck.ParameterError, r"controls\[0\].scale"),
    (with_control(scale=lambda progress: progress), ck.ParameterError, "points"),
    (with_control(start=0.5, end=0.5), ck.ParameterError, "start"),
    (with_control(start=0.9, end=0.2), ck.ParameterError, "start"),
    (with_control(end=1.5), ck.ParameterError, "end"),
    (with_control(start=float("nan")), ck.ParameterError, "start"),
    (with_control(mode="loud"), ck.ParameterError, "mode"),
    (with_control(resize="squeeze"), ck.ParameterError, "resize"),
    (with_control(block_scales=[1, "2"]), ck.ParameterError, "block_scales"),
    (with_control(detect_options={"low": 3}), ck.ParameterError, "detect_options"),
    (with_control(scal=1), ck.RecipeError, "Did you mean scale"),
    (with_control(image={}), ck.RecipeError, "image"),
    (with_control(image={"path": "a.png", "data": "AAAA"}), ck.RecipeError, "image"),
    (with_control(image={"data": "not base64!"}), ck.ParameterError, "data"),
    (with_control(module="controlnet-canny"), ck.ParameterError, "embedded:NAME"),
    (with_control(module={"source": "hub:a/b", "digest": "abc"}), ck.ParameterError, "digest"),
    ({"prompt": "a", "controls": [{"guidance": "color", "scal": 3}]}, ck.RecipeError, "scale"),
    ({"prompt": "a", "controls": [{"guidance": "../x"}]}, ck.ParameterError, "guidance"),
]


@pytest.mark.parametrize(("values", "kind", "says"), REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(
    values: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        ck.Recipe.load(values)
    message = str(caught.value)
    assert len(message) <= 600
    assert "pydantic" not in message
    assert "\n" not in message


ESCAPES = ["../map.png", "a/../../map.png", "/etc/passwd", "~/map.png", "C:\\map.png", "C:map.png"]
ESCAPES += [
    "\\\\host\\share\\map.png",
    "file:///etc/passwd",
    "https://example.org/a.png",
    "a\0b.png",
    "",
    "a\nb",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_paths_that_could_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(ck.ParameterError, match="path"):
        ck.Recipe.load(with_control(image={"path": path}))


def test_a_picture_given_as_it_is_gets_embedded_without_its_metadata() -> None:
    picture = Image.new("RGB", (8, 8), (1, 2, 3))
    exif = picture.getexif()
    exif[0x9286] = "at home"
    picture.info["exif"] = exif.tobytes()
    picture.info["comment"] = "secret"
    recipe = ck.Recipe.load(with_control(image=picture))
    again = ck.Recipe.load(recipe.to_json())
    assert again == recipe
    from controlkit.recipes import ControlRecipe, Files

    control = again.controls[0]
    assert isinstance(control, ControlRecipe)
    back = Files().picture(control.image)
    assert np.array_equal(np.asarray(back), np.asarray(picture))
    assert "comment" not in back.info
    assert not back.getexif()


def test_sixteen_bit_maps_are_embedded_exactly() -> None:
    from controlkit.recipes import Files, Picture, encode

    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    back = Files().picture(Picture(data=encode(Image.fromarray(values))))
    assert np.array_equal(np.asarray(back).astype(np.int64), values.astype(np.int64))


def test_the_published_schema_is_that_of_the_model() -> None:
    published = json.loads((ROOT / "docs" / "recipe.schema.json").read_text())
    assert published == ck.Recipe.model_json_schema(), "run: python tools/recipe_schema.py"


numbers = st.floats(-2, 2, allow_nan=False)
points = st.lists(st.tuples(st.floats(0, 1), numbers), min_size=1, max_size=4).map(
    lambda entries: sorted(entries, key=lambda entry: entry[0])
)
controls = st.fixed_dictionaries(
    {"module": st.sampled_from(["embedded:controlnet-canny", "hub:a/b", "file:x/y.safetensors"])},
    optional={
        "scale": numbers | points,
        "start": st.floats(0, 0.4),
        "end": st.floats(0.5, 1),
        "mode": st.sampled_from(["balanced", "prompt", "control"]),
        "resize": st.sampled_from(["stretch", "crop", "pad"]),
        "block_scales": st.lists(numbers, min_size=1, max_size=13),
    },
).map(lambda values: {**values, "image": {"path": "map.png"}})
recipes = st.fixed_dictionaries(
    {"prompt": st.text(max_size=80)},
    optional={
        "negative_prompt": st.text(max_size=20),
        "seed": st.integers(0, MAX_SEED),
        "steps": st.integers(1, 1000),
        "width": st.integers(1, 100).map(lambda n: 8 * n),
        "guidance_scale": st.floats(0, 100),
        "images": st.integers(1, 9),
        "scheduler": st.just("DDIMScheduler"),
        "controls": st.lists(controls, max_size=3),
    },
)


@given(recipes)
def test_every_recipe_survives_its_json(values: dict[str, Any]) -> None:
    recipe = ck.Recipe.load(values)
    assert ck.Recipe.load(recipe.to_json()) == recipe
    assert ck.Recipe.load(json.loads(recipe.to_json())) == recipe


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["prompt", "controls", "image", "module", "scale"]), inner)
        ),
    )
)
def test_no_data_of_any_shape_gives_another_kind_of_error(values: Any) -> None:
    with contextlib.suppress(ck.ControlKitError):
        ck.Recipe.load(values)
