"""From a recipe to pictures, and from a picture to the same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.recipes import ControlRecipe, png_bytes, results, write
from controlkit.recipes import building as building_module
from tests import tiny

pytestmark = pytest.mark.usefixtures("tiny_embedded")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).copy()


def a_map(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(values)


def steered(**changes: Any) -> ck.Recipe:
    control = {"module": "embedded:controlnet-canny", "image": a_map(), "scale": 0.9, "end": 0.8}
    values = {"prompt": "a house", "steps": 3, "width": 64, "height": 64, "seed": 5, "controls": [control]}
    return ck.Recipe.load({**values, **changes})


def test_a_control_in_a_recipe_changes_the_picture() -> None:
    (with_control,) = ck.run(steered())
    (without,) = ck.run(steered(controls=[]))
    assert with_control.size == (64, 64)
    assert not np.array_equal(pixels(with_control), pixels(without))


def test_a_saved_picture_makes_itself_again_to_the_bit(tmp_path: Path) -> None:
    (first,) = results(steered(scheduler={"name": "EulerAncestralDiscreteScheduler"}))
    path = write(tmp_path / "a.png", png_bytes(first.image, first.recipe))
    (again,) = results(path)
    assert np.array_equal(pixels(first.image), pixels(again.image))
    assert again.recipe == first.recipe


def test_each_picture_of_several_makes_itself_again() -> None:
    pictures = ck.run(steered(images=2, seed=2**64 - 1))
    assert not np.array_equal(pixels(pictures[0]), pixels(pictures[1]))
    assert ck.Recipe.load(pictures[1]).seed == 0
    for picture in pictures:
        (again,) = ck.run(ck.Recipe.load(picture))
        assert np.array_equal(pixels(picture), pixels(again))


def test_a_recipe_equals_the_same_calls_by_hand() -> None:
    (by_recipe,) = ck.run(steered())
    pipe = tiny.pipeline()
    with ck.attach(pipe, tiny.controlnet().on(a_map(), scale=0.9, end=0.8)):
        by_hand = pipe(
            "a house",
            num_inference_steps=3,
            guidance_scale=3.0,
            width=64,
            height=64,
            generator=torch.Generator("cpu").manual_seed(5),
        ).images[0]
    assert np.array_equal(pixels(by_recipe), pixels(by_hand))


def test_the_recipe_in_a_picture_is_complete_and_names_no_place(tmp_path: Path) -> None:
    folder = tmp_path / "secret-place"
    write(folder / "map.png", png_bytes(a_map(), None))
    tiny.controlnet().save(folder / "weights")
    values = steered().model_dump()
    values["controls"] = [
        {"module": "file:weights", "image": "map.png"},
        {"module": "embedded:t2i-depth", "image": a_map(1), "mask": "map.png"},
    ]
    recipe = ck.Recipe.load(ck.Recipe.load(values).save(folder / "recipe.json"))
    (result,) = results(recipe)
    content = png_bytes(result.image, result.recipe)
    assert b"secret-place" not in content
    assert str(Path.home()).encode() not in content
    first = result.recipe.controls[0]
    assert isinstance(first, ControlRecipe)
    assert first.image.data
    assert first.module.digest
    (again,) = results(ck.Recipe.load(content), models=folder)
    assert np.array_equal(pixels(again.image), pixels(result.image))


def test_other_weights_than_the_recipes_are_refused(tmp_path: Path) -> None:
    tiny.controlnet().save(tmp_path / "weights")
    module = {"source": "file:weights", "digest": "0" * 64}
    recipe = steered(controls=[{"module": module, "image": a_map()}])
    with pytest.raises(ck.RecipeError, match="SHA-256"):
        ck.run(recipe, models=tmp_path)


def test_a_pipeline_that_is_given_is_left_as_it_was() -> None:
    pipe = tiny.pipeline()
    scheduler = pipe.scheduler
    config = dict(scheduler.config)
    hooks = len(pipe.unet._forward_hooks)
    (image,) = ck.run(steered(scheduler="DPMSolverMultistepScheduler"), pipe)
    assert pipe.scheduler is scheduler
    assert dict(scheduler.config) == config
    assert len(pipe.unet._forward_hooks) == hooks
    assert image.size == (64, 64)


def test_the_scheduler_of_a_given_pipeline_is_written_down() -> None:
    from diffusers import HeunDiscreteScheduler

    pipe = tiny.pipeline(scheduler=HeunDiscreteScheduler(beta_schedule="scaled_linear"))
    (picture,) = ck.run(steered(), pipe)
    recipe = ck.Recipe.load(picture)
    assert recipe.scheduler is not None
    assert recipe.scheduler.name == "HeunDiscreteScheduler"
    (again,) = ck.run(recipe)
    assert np.array_equal(pixels(picture), pixels(again))


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"scheduler": "NoSuchScheduler"}, ck.ParameterError, "scheduler"),
        ({"scheduler": {"name": "DDIMScheduler", "options": {"loud": 1}}}, ck.ParameterError, "loud"),
        ({"model": "embedded:other"}, ck.RecipeError, "embedded:base"),
        ({"model": "file:absent"}, ck.RecipeError, "absent"),
        ({"controls": [{"module": "embedded:x", "image": a_map()}]}, ck.RecipeError, "controlnet-canny"),
        ({"controls": [{"guidance": "nothing"}]}, ck.RecipeError, "guidance"),
    ],
)
def test_what_a_recipe_names_must_exist(
    changes: dict[str, Any], kind: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says):
        ck.run(steered(**changes), models=tmp_path)


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ck.RecipeError, match="cannot be read") as caught:
        ck.run(steered(model="file:empty"), models=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_in_a_folder_is_run(tmp_path: Path) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "model")
    (by_folder,) = ck.run(steered(model="file:model"), models=tmp_path)
    (embedded,) = ck.run(steered())
    assert np.array_equal(pixels(by_folder), pixels(embedded))


def test_guidance_is_found_by_its_registered_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def brightness(weight: float = 1.0) -> Any:
        return lambda x, y, _t: weight * y * x.mean(dim=(1, 2, 3))

    monkeypatch.setattr(building_module, "_phi", {"brightness": brightness}.__getitem__)
    guidance = {"guidance": "brightness", "options": {"weight": 2.0}, "target": 50.0, "scale": 500.0}
    (guided,) = ck.run(steered(controls=[guidance]))
    (plain,) = ck.run(steered(controls=[]))
    assert not np.array_equal(pixels(guided), pixels(plain))
    (again,) = ck.run(ck.Recipe.load(guided))
    assert np.array_equal(pixels(guided), pixels(again))


def test_progress_is_told_after_every_step() -> None:
    seen: list[tuple[int, int, int]] = []
    ck.run(steered(images=2), progress=lambda *told: seen.append(told))
    assert seen == [(n, k, 3) for n in (0, 1) for k in (1, 2, 3)]


def test_something_else_than_a_pipeline_is_refused() -> None:
    with pytest.raises(ck.NotApplicable):
        ck.run(steered(), object())
