"""Starting from a picture: as diffusers' own pipelines do it, the rest kept, mistakes refused."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.recipes import InitRecipe, png_bytes, results, write
from tests import tiny

pytestmark = pytest.mark.usefixtures("tiny_embedded")

LEFT = (0, 0, 32, 64)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).copy()


def photo(size: tuple[int, int] = (64, 64), seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def mask(box: tuple[int, int, int, int] = LEFT, size: tuple[int, int] = (64, 64)) -> Image.Image:
    made = Image.new("L", size, 0)
    made.paste(255, box)
    return made


def started(init: dict[str, Any], **changes: Any) -> ck.Recipe:
    given = {"prompt": "a house", "steps": 4, "width": 64, "height": 64, "seed": 5}
    return ck.Recipe.load({**given, "init": {"image": photo(), **init}, **changes})


def by_hand(kind: str, pipe: Any = None, **arguments: Any) -> np.ndarray:
    pipe = pipe or tiny.pipeline(cls=getattr(diffusers, kind))
    made = pipe(
        "a house",
        image=photo(),
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(5),
        **arguments,
    )
    return pixels(made.images[0])


def test_image_to_image_is_diffusers_own() -> None:
    (made,) = ck.run(started({"strength": 0.5}))
    assert np.array_equal(pixels(made), by_hand("StableDiffusionImg2ImgPipeline", strength=0.5))
    (more,) = ck.run(started({"strength": 0.75}))
    assert not np.array_equal(pixels(made), pixels(more))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_is_diffusers_own(strength: float) -> None:
    init = {"strength": strength, "mask": mask(), "blur": 0, "keep": False}
    (made,) = ck.run(started(init))
    wanted = by_hand(
        "StableDiffusionInpaintPipeline", strength=strength, mask_image=mask(), width=64, height=64
    )
    assert np.array_equal(pixels(made), wanted)


def test_what_is_not_painted_stays_to_the_bit_and_the_rest_is_new() -> None:
    (made,) = ck.run(started({"strength": 1.0, "mask": mask(), "blur": 0}))
    wanted = by_hand("StableDiffusionInpaintPipeline", strength=1.0, mask_image=mask(), width=64, height=64)
    assert np.array_equal(pixels(made)[:, 32:], pixels(photo())[:, 32:])
    assert np.array_equal(pixels(made)[:, :32], wanted[:, :32])
    assert not np.array_equal(wanted[:, 32:], pixels(photo())[:, 32:])


def test_the_edge_fades_outwards_over_some_pixels() -> None:
    (hard,) = ck.run(started({"mask": mask(), "blur": 0}))
    (soft,) = ck.run(started({"mask": mask(), "blur": 3.0}))
    changed = (pixels(hard) != pixels(soft)).any(axis=(0, 2))
    assert not changed[:32].any()
    assert changed[32:36].any()
    assert np.array_equal(pixels(soft)[:, 48:], pixels(photo())[:, 48:])


def test_with_a_margin_the_part_around_the_mask_is_drawn_and_put_back() -> None:
    whole, painted = photo((200, 160)), mask((120, 40, 140, 56), (200, 160))
    init = {"image": whole, "mask": painted, "strength": 1.0, "margin": 6, "blur": 0}
    (made,) = ck.run(started(init))
    assert made.size == (200, 160)
    changed = (pixels(made) != pixels(whole)).any(axis=2)
    assert changed[40:56, 120:140].mean() > 0.9
    changed[40:56, 120:140] = False
    assert not changed.any()
    # the part: 32 x 28 with the margin, widened to the square shape of the run
    box = (114, 32, 146, 64)
    part, region = (each.crop(box).resize((64, 64), kind) for each, kind in
                    ((whole, Image.Resampling.LANCZOS), (painted, Image.Resampling.BILINEAR)))  # fmt: skip
    (by_hand,) = ck.run(started({"image": part, "mask": region, "strength": 1.0, "blur": 0, "keep": False}))
    back = pixels(by_hand.resize((32, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels(made)[40:56, 120:140], back[8:24, 6:26])
    recipe = ck.Recipe.load(made)
    assert (recipe.width, recipe.height) == (64, 64)
    assert np.array_equal(pixels(ck.run(recipe)[0]), pixels(made))


def test_a_margin_stops_at_the_edges_of_the_picture() -> None:
    whole = photo((70, 200))
    init = {
        "image": whole,
        "mask": mask((0, 0, 70, 10), (70, 200)),
        "margin": 500,
        "blur": 0,
        "strength": 1.0,
    }
    (made,) = ck.run(started(init))
    assert made.size == (70, 200)
    assert np.array_equal(pixels(made)[11:], pixels(whole)[11:])


def test_a_thin_stroke_is_drawn_anew_whole() -> None:
    stroke = mask((3, 21, 61, 23))
    for blur in (0, 4.0):
        (made,) = ck.run(started({"mask": stroke, "blur": blur, "strength": 1.0}))
        inside = np.asarray(stroke) > 0
        assert (pixels(made)[inside] != pixels(photo())[inside]).any(axis=1).mean() > 0.9


def test_a_saved_picture_makes_itself_again_to_the_bit_and_names_no_place(tmp_path: Path) -> None:
    folder = tmp_path / "secret-place"
    for name, picture in {"photo.png": photo(), "mask.png": mask()}.items():
        write(folder / name, png_bytes(picture, None))
    values = {"prompt": "a house", "steps": 4, "width": 64, "height": 64, "images": 2}
    values["init"] = {"image": "photo.png", "mask": "mask.png", "strength": 0.75}
    recipe = ck.Recipe.load(ck.Recipe.load(values).save(folder / "recipe.json"))
    made = list(results(recipe))
    assert not np.array_equal(pixels(made[0].image), pixels(made[1].image))
    for result in made:
        content = png_bytes(result.image, result.recipe)
        assert b"secret-place" not in content
        assert b"photo.png" not in content
        (again,) = results(ck.Recipe.load(content))
        assert again.recipe == result.recipe
        assert np.array_equal(pixels(again.image), pixels(result.image))


@pytest.mark.parametrize("masked", [False, True])
def test_controls_act_in_the_steps_that_are_run(masked: bool) -> None:
    init = {"strength": 0.5, **({"mask": mask(), "blur": 0, "keep": False} if masked else {})}
    control = {"module": "embedded:controlnet-canny", "image": photo(seed=1), "scale": 0.9, "end": 0.5}
    (result,) = results(started(init, controls=[control]))
    (row,) = result.report.rows
    assert row.steps == 2
    assert row.applied == 1
    kind = "StableDiffusionInpaintPipeline" if masked else "StableDiffusionImg2ImgPipeline"
    pipe = tiny.pipeline(cls=getattr(diffusers, kind))
    more = {"mask_image": mask(), "width": 64, "height": 64} if masked else {}
    with ck.attach(pipe, tiny.controlnet().on(photo(seed=1), scale=0.9, end=0.5)):
        wanted = by_hand(kind, pipe, strength=0.5, **more)
    assert np.array_equal(pixels(result.image), wanted)
    (without,) = ck.run(started(init))
    assert not np.array_equal(pixels(result.image), pixels(without))


@pytest.fixture(scope="module")
def filling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that fills masks."""
    folder = tmp_path_factory.mktemp("models")
    cls: Any = diffusers.StableDiffusionInpaintPipeline
    tiny.pipeline(cls=cls, unet=tiny.unet(in_channels=9)).save_pretrained(folder / "filling")
    return folder


def test_a_model_that_fills_masks_is_used_as_diffusers_uses_it(filling: Path) -> None:
    init = {"strength": 1.0, "mask": mask(), "blur": 0, "keep": False}
    control = {"module": "embedded:controlnet-canny", "image": photo(seed=1)}
    (made,) = ck.run(started(init, model="file:filling"), models=filling)
    (steered,) = ck.run(started(init, model="file:filling", controls=[control]), models=filling)
    cls: Any = diffusers.StableDiffusionInpaintPipeline
    pipe = tiny.pipeline(cls=cls, unet=tiny.unet(in_channels=9))
    more: dict[str, Any] = {"strength": 1.0, "mask_image": mask(), "width": 64, "height": 64}
    assert np.array_equal(pixels(made), by_hand("", pipe, **more))
    with ck.attach(pipe, tiny.controlnet().on(photo(seed=1))):
        assert np.array_equal(pixels(steered), by_hand("", pipe, **more))
    assert not np.array_equal(pixels(made), pixels(steered))


@pytest.mark.parametrize("init", [None, {"image": photo()}])
def test_a_model_that_fills_masks_needs_one(filling: Path, init: Any) -> None:
    recipe = started({}, model="file:filling").model_copy(update={"init": init and InitRecipe(**init)})
    with pytest.raises(ck.RecipeError, match="9 channels"):
        ck.run(recipe, models=filling)


@pytest.mark.parametrize("masked", [False, True])
def test_a_pipeline_that_is_given_is_left_as_it_was(masked: bool) -> None:
    pipe = tiny.pipeline("sdxl").to(torch.bfloat16)
    pipe.scheduler = tiny.scheduler(steps_offset=0)
    before = pipe.scheduler, dict(pipe.scheduler.config), pipe.unet
    init = {"strength": 0.5, **({"mask": mask()} if masked else {})}
    (made,) = ck.run(started(init), pipe)
    assert made.size == (64, 64)
    assert (pipe.scheduler, dict(pipe.scheduler.config), pipe.unet) == before
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"


def test_a_pipeline_of_the_kind_is_used_itself() -> None:
    calls: list[Any] = []

    class Mine(diffusers.StableDiffusionImg2ImgPipeline):
        def get_timesteps(self, *args: Any, **options: Any) -> Any:
            calls.append(self)
            return super().get_timesteps(*args, **options)

    (made,) = ck.run(started({"strength": 0.5}), tiny.pipeline(cls=Mine))
    assert len(calls) == 1
    assert np.array_equal(pixels(made), by_hand("StableDiffusionImg2ImgPipeline", strength=0.5))


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_picture_and_mask_of_another_shape_are_fitted_alike(resize: str) -> None:
    half = mask((0, 0, 100, 48), (100, 96))
    wide = Image.composite(Image.new("RGB", half.size, "white"), Image.new("RGB", half.size, "black"), half)
    init = {"image": wide, "mask": half, "strength": 1.0, "resize": resize, "blur": 0}
    (made,) = ck.run(started(init))
    kept = pixels(made)[40:]
    assert not kept.any(), "what is black in the picture is black in the mask: kept"
    assert pixels(made)[4:24].any()


def test_without_a_size_it_is_the_models_own() -> None:
    (made,) = ck.run(started({"image": photo((100, 120)), "strength": 0.5}, width=None, height=None))
    assert made.size == (64, 64)
    (other,) = ck.run(started({"image": photo((100, 120)), "strength": 0.5}, width=96, height=None))
    assert other.size == (96, 64)
    assert ck.Recipe.load(other).width == 96


def test_progress_counts_the_steps_that_are_run() -> None:
    seen: list[tuple[int, int, int]] = []
    ck.run(started({"strength": 0.5}), progress=lambda *told: seen.append(told))
    assert seen == [(0, 1, 2), (0, 2, 2)]
    assert started({"strength": 0.5}).run_steps == 2


@pytest.mark.parametrize(
    ("init", "kind", "says"),
    [
        ({"strength": 0.0}, ck.ParameterError, "init.strength"),
        ({"strength": -0.1}, ck.ParameterError, "init.strength"),
        ({"strength": 1.01}, ck.ParameterError, "init.strength"),
        ({"strength": float("nan")}, ck.ParameterError, "init.strength"),
        ({"strength": "1"}, ck.ParameterError, "init.strength"),
        ({"strength": 0.2}, ck.ParameterError, "less than one"),
        ({"blur": 65}, ck.ParameterError, "init.blur"),
        ({"resize": "fill"}, ck.ParameterError, "init.resize"),
        ({"margin": 8}, ck.ParameterError, "init.margin; found no mask"),
        ({"margin": -1, "mask": mask()}, ck.ParameterError, "init.margin"),
        ({"mask_image": mask()}, ck.RecipeError, "a key that no recipe has"),
        ({"image": {"path": "../photo.png"}}, ck.ParameterError, r"\.\."),
    ],
)
def test_what_cannot_be_meant_is_refused(init: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        started(init)


def test_a_margin_with_controls_is_refused() -> None:
    control = {"module": "embedded:controlnet-canny", "image": photo()}
    with pytest.raises(ck.ParameterError, match="show the whole picture"):
        started({"margin": 8, "mask": mask()}, controls=[control])


@pytest.mark.parametrize(
    ("init", "kind", "says"),
    [
        ({"mask": mask(size=(64, 72))}, ck.ParameterError, "64 x 72 pixels; needed 64 x 64"),
        ({"mask": Image.new("L", (64, 64), 0)}, ck.ParameterError, "without anything white"),
        ({"mask": Image.new("L", (64, 64), 100)}, ck.ParameterError, "without anything white"),
        ({"image": "absent.png"}, ck.RecipeError, "absent"),
        ({"image": {"data": "AAAA"}}, ck.HintError, "no picture format"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_first_step(
    tmp_path: Path, init: dict[str, Any], kind: type[Exception], says: str
) -> None:
    recipe = ck.Recipe.load(started(init), base=tmp_path)
    with pytest.raises(kind, match=says):
        ck.run(recipe, progress=lambda *_: pytest.fail("a step was run"))


def test_a_kind_of_pipeline_that_diffusers_has_no_other_for_is_refused() -> None:
    class Other:
        scheduler = tiny.scheduler()
        unet = tiny.unet()
        vae_scale_factor = 8
        config = MappingProxyType({})
        components = MappingProxyType({})

        def __call__(self) -> None: ...

    with pytest.raises(ck.NotApplicable, match="Other"):
        ck.run(started({"strength": 0.5}), Other())


def test_a_u_net_that_reads_other_channels_is_refused() -> None:
    pipe = tiny.pipeline(unet=tiny.unet(in_channels=8))
    with pytest.raises(ck.NotApplicable, match="8 channels"):
        ck.run(started({"strength": 0.5}), pipe)


def test_a_picture_alone_stands_for_the_whole_and_recipes_without_one_are_as_before() -> None:
    recipe = ck.Recipe(prompt="a", init=photo())  # pyright: ignore[reportArgumentType]
    assert recipe.init is not None
    assert recipe.init.strength == 0.8
    assert ck.Recipe.load({"prompt": "a", "init": "x.png"}).init is not None
    assert ck.Recipe.load(recipe.to_json()) == recipe
    plain = ck.Recipe(prompt="a")
    assert "init" not in plain.to_json()
    assert plain.run_steps == plain.steps
