"""Reading recipes from text and pictures, and writing files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

import controlkit as ck
from controlkit.recipes import ControlRecipe, Files, Picture, png_bytes, write

RECIPE = ck.Recipe(prompt="a red “cube” é ☃", seed=2**64 - 1)


def test_a_picture_carries_its_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png_bytes(Image.new("RGB", (8, 8), "red"), RECIPE))
    assert ck.Recipe.load(path) == RECIPE
    assert ck.Recipe.load(str(path)) == RECIPE
    assert ck.Recipe.load(path.read_bytes()) == RECIPE
    with Image.open(path) as picture:
        assert ck.Recipe.load(picture) == RECIPE


def test_nothing_else_of_a_picture_is_saved() -> None:
    picture = Image.new("RGB", (8, 8))
    picture.info = {"comment": "secret-comment", "icc_profile": b"x" * 10}
    exif = picture.getexif()
    exif[0x9286] = "secret-place"
    content = png_bytes(picture, None)
    assert b"secret" not in content
    assert b"iCCP" not in content


def test_a_recipe_is_saved_and_read_back(tmp_path: Path) -> None:
    path = RECIPE.save(tmp_path / "sub" / "recipe.json")
    again = ck.Recipe.load(path)
    assert again == RECIPE
    assert again.base == path.parent
    with pytest.raises(ck.SaveError, match="a file of that name"):
        RECIPE.save(path)
    RECIPE.save(path, force=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ('{"prompt": "a", "prompt": "b"}', "more than once"),
        ('{"prompt": "a", "guidance_scale": NaN}', "NaN"),
        ('{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
    ],
)
def test_json_that_is_not_what_it_seems_is_refused(text: str, says: str) -> None:
    with pytest.raises(ck.RecipeError, match=says):
        ck.Recipe.load(text)


def test_files_without_a_recipe_are_refused(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.png", png_bytes(Image.new("RGB", (8, 8)), None))
    with pytest.raises(ck.RecipeError, match="without a recipe"):
        ck.Recipe.load(plain)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ck.RecipeError, match="neither JSON nor a PNG"):
        ck.Recipe.load(tmp_path / "bytes")
    for missing in (tmp_path / "absent.json", tmp_path, "a\0b"):
        with pytest.raises(ck.RecipeError):
            ck.Recipe.load(missing)
    with pytest.raises(ck.RecipeError, match="list"):
        ck.Recipe.load(b"[1]")
    with pytest.raises(ck.RecipeError, match="int"):
        ck.Recipe.load(3)


def test_numbered_names_are_taken_and_nothing_is_left_behind(tmp_path: Path) -> None:
    names = [write(tmp_path / "a.png", bytes([k]), number=True).name for k in range(3)]
    assert names == ["a.png", "a-2.png", "a-3.png"]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"\0", b"\1", b"\2"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.png", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ck.SaveError, match="no space"):
        write(path, b"new", force=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_folder_that_is_a_file_is_a_save_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ck.SaveError):
        write(tmp_path / "file" / "a.png", b"x")


def test_pictures_are_found_beside_the_recipe_and_nowhere_else(tmp_path: Path) -> None:
    inside, outside = tmp_path / "recipe", tmp_path / "outside"
    for folder in (inside, outside):
        write(folder / "map.png", png_bytes(Image.new("RGB", (8, 8), "blue"), None))
    files = Files(base=inside)
    assert files.picture(Picture(path="map.png")).size == (8, 8)
    (inside / "link.png").symlink_to(outside / "map.png")
    (inside / "folder").symlink_to(outside)
    for path in ("link.png", "folder/map.png"):
        with pytest.raises(ck.RecipeError, match="out of its folder"):
            files.picture(Picture(path=path))
    with pytest.raises(ck.RecipeError, match="no file"):
        files.picture(Picture(path="absent.png"))
    with pytest.raises(ck.RecipeError, match="came from no file"):
        Files().picture(Picture(path="map.png"))


def test_a_changed_picture_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "map.png", png_bytes(Image.new("RGB", (8, 8)), None))
    with pytest.raises(ck.RecipeError, match="another file"):
        Files(base=tmp_path).picture(Picture(path="map.png", digest="0" * 64))


def test_broken_data_is_a_recipe_or_hint_error() -> None:
    for data in ("A", "AAAA"):
        with pytest.raises((ck.RecipeError, ck.HintError)):
            Files().picture(Picture(data=data))


def test_weights_are_looked_for_in_the_models_folder_first(tmp_path: Path) -> None:
    beside, models = tmp_path / "recipe", tmp_path / "models"
    for folder in (beside, models):
        write(folder / "w.safetensors", b"x")
    assert Files(beside, models).weights("file:w.safetensors") == models / "w.safetensors"
    assert Files(beside).weights("file:w.safetensors") == beside / "w.safetensors"
    with pytest.raises(ck.ParameterError, match="path"):
        Files(beside, models).weights("file:../recipe/w.safetensors")
    with pytest.raises(ck.RecipeError, match="no file"):
        Files(beside, models).weights("file:absent.safetensors")


def test_paths_in_a_loaded_recipe_are_relative_to_its_file(tmp_path: Path) -> None:
    recipe = ck.Recipe.load({"prompt": "a", "controls": [{"module": "embedded:x", "image": "map.png"}]})
    loaded = ck.Recipe.load(recipe.save(tmp_path / "r.json"))
    assert loaded.base == tmp_path
    control = loaded.controls[0]
    assert isinstance(control, ControlRecipe)
    assert control.image.path == "map.png"
