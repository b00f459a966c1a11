"""``controlkit generate``: options, recipes, output, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.recipes import ControlRecipe
from tests.cli.conftest import Command

pytestmark = pytest.mark.usefixtures("tiny_embedded")

QUICK = ("--steps", "2", "--size", "64")


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def test_a_prompt_gives_a_picture_that_carries_its_recipe(command: Command) -> None:
    done = command("generate", "a red cube", "--seed", "7", *QUICK)
    assert done.code == 0, done.err
    assert done.lines == ["picture.png"]
    recipe = ck.Recipe.load("picture.png")
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.width, recipe.height) == (
        "a red cube",
        7,
        2,
        64,
        64,
    )
    assert recipe.made_with is not None
    assert "torch" in recipe.made_with


def test_the_recipe_in_a_picture_makes_the_same_picture(command: Command, photo: Path) -> None:
    control = f"controlnet-canny={photo},detect=canny,detect.low_threshold=50,scale=0:1/0.5:0.2,end=0.9"
    assert command("generate", "a cube", "-c", control, "-o", "first.png", *QUICK).code == 0
    done = command("generate", "--recipe", "first.png", "--out", "again.png")
    assert done.code == 0, done.err
    assert np.array_equal(pixels("first.png"), pixels("again.png"))
    assert ck.Recipe.load("first.png") == ck.Recipe.load("again.png")
    assert command("generate", "--recipe", "first.png", "--seed", "1", "--out", "other.png").code == 0
    assert not np.array_equal(pixels("first.png"), pixels("other.png"))


def test_controls_are_read_as_written(command: Command, photo: Path) -> None:
    control = (
        f"controlnet-canny={photo},detect=canny,detect.low_threshold=50,detect.high_threshold=120,scale=0.7,start=0.1,end=0.9,"
        f"mode=prompt,mask={photo},resize=pad"
    )
    done = command("generate", "a", "-c", control, "-c", f"t2i-depth={photo}", *QUICK)
    assert done.code == 0, done.err
    first, second = ck.Recipe.load("picture.png").controls
    assert isinstance(first, ControlRecipe)
    assert isinstance(second, ControlRecipe)
    assert first.module.source == "embedded:controlnet-canny"
    assert second.module.source == "embedded:t2i-depth"
    assert (first.detect, first.detect_options) == ("canny", {"low_threshold": 50, "high_threshold": 120})
    assert (first.scale, first.start, first.end) == (0.7, 0.1, 0.9)
    assert (first.mode, first.resize) == ("prompt", "pad")
    assert first.mask is not None
    assert "applied" in done.err or "steps" in done.err


def test_nothing_is_overwritten_unless_forced(command: Command) -> None:
    names = [command("generate", "a", *QUICK).lines[0] for _ in range(2)]
    assert names == ["picture.png", "picture-2.png"]
    first = pixels("picture.png")
    assert command("generate", "a", "--seed", "9", "--force", *QUICK).lines == ["picture.png"]
    assert not np.array_equal(first, pixels("picture.png"))


def test_several_pictures_go_into_a_folder(command: Command) -> None:
    done = command("generate", "a", "-n", "3", "--out", "pictures", "--json", *QUICK)
    assert done.code == 0, done.err
    assert [Path(entry["path"]).name for entry in done.json] == [
        "picture.png",
        "picture-2.png",
        "picture-3.png",
    ]
    assert [entry["seed"] for entry in done.json] == [0, 1, 2]


def test_json_says_how_well_the_map_is_followed(command: Command, photo: Path) -> None:
    done = command("generate", "a", "-c", f"controlnet-canny={photo},detect=canny", "--json", *QUICK)
    assert done.code == 0, done.err
    ((score,),) = [entry["adherence"] for entry in done.json]
    assert (score["control"], score["measure"], score["by"]) == (0, "edges", "canny")
    assert 0 <= score["value"] <= 1


def test_local_weights_are_named_by_file_and_found_again(
    command: Command, photo: Path, tmp_path: Path
) -> None:
    from tests import tiny

    tiny.controlnet().save(tmp_path / "private" / "my-canny")
    done = command("generate", "a", "-c", f"private/my-canny={photo}", *QUICK)
    assert done.code == 0, done.err
    assert b"private" not in Path("picture.png").read_bytes()
    assert command("generate", "--recipe", "picture.png", "-o", "b.png").code == 1
    assert command("generate", "--recipe", "picture.png", "-o", "b.png", "--models", "private").code == 0
    assert np.array_equal(pixels("picture.png"), pixels("b.png"))


def test_a_local_model_is_used(command: Command, tmp_path: Path) -> None:
    from tests import tiny

    tiny.pipeline().save_pretrained(tmp_path / "model")
    done = command("generate", "a", "--model", "model", *QUICK)
    assert done.code == 0, done.err
    assert ck.Recipe.load("picture.png").model.source == "file:model"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("a", "--size", "33x35"), 2, "32 and 40"),
        (("a", "--size", "big"), 2, "--size"),
        (("a", "--steps", "0"), 2, "steps"),
        (("a", "--steps", "two"), 2, "steps"),
        (("a", "--seed", "-1"), 2, "seed"),
        (("a", "--guidance", "nan"), 2, "guidance"),
        (("a", "-n", "0"), 2, "images"),
        (("a", "--scheduler", "Nothing"), 2, "scheduler"),
        (("a", "--dtype", "int8"), 2, "dtype"),
        (("a", "--stepz", "3"), 2, "stepz"),
        (("a", "--out", "picture.jpg"), 2, ".png"),
        (("a", "-c", "controlnet-canny"), 2, "NAME=IMAGE"),
        (("a", "-c", "controlnet-cany=photo.png"), 2, "Did you mean controlnet-canny"),
        (("a", "-c", "controlnet-canny=photo.png,scal=1"), 2, "Did you mean scale"),
        (("a", "-c", "controlnet-canny=photo.png,scale=x"), 2, "scale"),
        (("a", "-c", "controlnet-canny=photo.png,scale=nan"), 2, "scale"),
        (("a", "-c", "controlnet-canny=photo.png,start=0.9,end=0.1"), 2, "start"),
        (("a", "-c", "controlnet-canny=photo.png,detect=nothing"), 2, "detector"),
        (("a", "-c", "controlnet-canny=photo.png,option.loud=1"), 2, "loud"),
        (("a", "-c", "controlnet-canny=absent.png"), 1, "no such file"),
        (("--recipe", "absent.png"), 1, "absent.png"),
        (("--recipe", "photo.png"), 1, "without a recipe"),
        (("--out", "x.png"), 2, "PROMPT"),
    ],
)
def test_mistakes_are_one_sentence_and_an_exit_code(
    command: Command, photo: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = command("generate", *arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert done.err.startswith("controlkit: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert not list(Path().glob("picture*"))


def test_debug_shows_the_traceback(command: Command) -> None:
    with pytest.raises(ck.ParameterError):
        command("generate", "a", "--steps", "0", "--debug")


def test_an_interruption_is_no_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import controlkit.recipes

    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(controlkit.recipes, "results", interrupted)
    done = command("generate", "a", *QUICK)
    assert (done.code, done.err) == (130, "controlkit: interrupted\n")


def test_a_fault_of_ours_is_one_sentence_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import controlkit.recipes

    def broken(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(controlkit.recipes, "results", broken)
    done = command("generate", "a", *QUICK)
    assert done.code == 1
    assert "ZeroDivisionError: two" in done.err
    assert "--debug" in done.err
    assert done.err.count("\n") == 1


def test_a_picture_to_start_from_and_what_of_it_is_drawn_anew(command: Command, photo: Path) -> None:
    painted = Image.new("L", (64, 64), 0)
    painted.paste(255, (0, 0, 32, 64))
    painted.save("mask.png")
    start = ("--image", str(photo), "--strength", "0.5", "--inpaint-mask", "mask.png", "--mask-blur", "0")
    done = command("generate", "a cube", *start, *QUICK)
    assert done.code == 0, done.err
    made, given = pixels("picture.png"), pixels(photo)
    assert np.array_equal(made[:, 32:], given[:, 32:])
    assert not np.array_equal(made[:, :32], given[:, :32])
    recipe = ck.Recipe.load("picture.png")
    assert recipe.init is not None
    assert (recipe.init.strength, recipe.init.blur) == (0.5, 0)
    assert b"photo.png" not in Path("picture.png").read_bytes()
    assert command("generate", "--recipe", "picture.png", "-o", "again.png").code == 0
    assert np.array_equal(pixels("again.png"), made)
    # options change what the recipe says about its picture; another picture comes without the old mask
    assert command("generate", "--recipe", "picture.png", "--strength", "1", "-o", "more.png").code == 0
    more = ck.Recipe.load("more.png").init
    assert more is not None
    assert (more.strength, more.mask) == (1, recipe.init.mask)
    assert command("generate", "--recipe", "picture.png", "--image", "more.png", "-o", "other.png").code == 0
    other = ck.Recipe.load("other.png").init
    assert other is not None
    assert (other.strength, other.mask) == (0.5, None)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--strength", "0.5"), 2, "--strength"),
        (("--mask-blur", "2"), 2, "--mask-blur"),
        (("--image", "photo.png", "--strength", "0"), 2, "init.strength"),
        (("--image", "photo.png", "--strength", "0.1"), 2, "less than one"),
        (("--image", "photo.png", "--image-resize", "fill"), 2, "init.resize"),
        (("--image", "absent.png"), 1, "absent.png"),
        (("--image", "photo.png", "--inpaint-mask", "small.png"), 2, "init.mask"),
    ],
)
def test_a_picture_to_start_from_that_cannot_be(
    command: Command, photo: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    Image.new("L", (32, 32), 255).save("small.png")
    done = command("generate", "a", *arguments, *QUICK)
    assert done.code == code, done.err
    assert says in done.err
    assert not Path("picture.png").exists()


def test_a_whole_model_in_one_file(command: Command, tmp_path: Path) -> None:
    from tests import original, tiny

    original.save(tiny.pipeline(), tmp_path / "whole.safetensors")
    done = command("generate", "a", "--model", "whole.safetensors", *QUICK)
    assert done.code == 0, done.err
    assert ck.Recipe.load("picture.png").model.source == "file:whole.safetensors"
    (tmp_path / "whole").rename(tmp_path / "configs")
    more = ("--model", "whole.safetensors", "--model-config", "configs", "-o", "b.png")
    assert command("generate", "a", *more, *QUICK).code == 0
    assert np.array_equal(pixels("picture.png"), pixels("b.png"))
    assert command("generate", "a", "--model-config", "configs", *QUICK).code == 2
