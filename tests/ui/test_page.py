"""What the page does, called directly; the browser itself is in `test_browser.py`."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.recipes import png_bytes
from controlkit.ui import fields
from controlkit.ui.settings import NO_DETECTOR, Guide, Page, Start, Unit
from tests.ui.conftest import photo

gradio = pytest.importorskip("gradio", reason="no gradio: pip install 'controlkit[ui]'")


def mask() -> Image.Image:
    made = Image.new("L", (64, 64), 0)
    made.paste(200, (0, 0, 32, 64))
    return made


CANNY = {"module": "embedded:controlnet-canny", "image": photo()}
RECIPES: list[dict[str, Any]] = [
    {},
    {"seed": 2**64 - 1, "negative_prompt": "blue", "images": 3, "guidance_scale": 0.5, "steps": 7},
    {"model": {"source": "embedded:base", "dtype": "float32"}},
    {"scheduler": {"name": "EulerDiscreteScheduler", "options": {"use_karras_sigmas": True}}},
    {"width": 64, "height": 96, "controls": [CANNY]},
    {"controls": [{**CANNY, "detect": "canny", "detect_options": {"size": 128, "low_threshold": 50}}]},
    {"controls": [{**CANNY, "detect": "canny", "detect_options": {"size": 96}}]},
    {"controls": [{**CANNY, "detect": "canny", "detect_options": {"resolution": "auto"}}]},
    {"controls": [{**CANNY, "scale": [[0, 1.0], [0.55, 0.1]], "start": 0.1, "end": 0.7, "mode": "prompt"}]},
    {"controls": [{**CANNY, "mask": mask(), "resize": "pad", "block_scales": [1.0, 0.5, 0.25]}]},
    {"controls": [{**CANNY, "options": {"condition": "depth"}, "channel_order": "bgr"}]},
    {"controls": [{**CANNY, "module": {"source": "embedded:controlnet-canny", "digest": "0" * 64}}]},
    {"controls": [{**CANNY, "image": photo().convert("L")}, {**CANNY, "module": "embedded:t2i-depth"}]},
    {"controls": [{"guidance": "color", "target": "red", "scale": 0.5, "options": {"mask": mask()}}]},
    {"controls": [{"guidance": "color", "target": [200, 10, 10], "max_norm": 5.0, "every": 2}]},
    {"controls": [{"guidance": "edges", "image": photo(), "scale": [[0, 0.0], [1, 2.0]], "end": 0.5}]},
    {"controls": [{"guidance": "text", "target": "3", "options": {"model": "embedded:clip"}}]},
    {"init": {"image": photo(), "strength": 0.55}},
    {"init": {"image": photo(), "mask": mask(), "blur": 0, "keep": False, "resize": "crop"}, "width": 64},
    {"init": {"image": photo(), "mask": mask(), "margin": 16}},
    {"controls": [{"guidance": "classifier", "target": 3, "options": {"network": "embedded:classifier"}}]},
]


@pytest.mark.parametrize("values", RECIPES, ids=range(len(RECIPES)))
def test_a_recipe_comes_back_from_the_page_as_it_was(places: Any, values: dict[str, Any]) -> None:
    wanted = ck.Recipe.load({"prompt": "a house", **values})
    assert fields.recipe_of(fields.page_of(wanted, places), places) == wanted


def test_the_values_of_the_widgets_are_the_page(service: Any) -> None:
    from controlkit.ui.page import page_from, values_of

    wanted = ck.Recipe.load({"prompt": "a house", **RECIPES[9], "seed": 4})
    page = fields.page_of(wanted, service.places)
    values = values_of(page, service, 7)
    back = page_from(tuple(values[: len(values) - 2 * len(page.units)]))
    assert fields.recipe_of(back, service.places) == wanted
    drawn, tick = values[-2 * len(page.units) :][:2]
    assert (tick, values[-1]) == (7, 0)  # of a unit in use, and of one that is not
    painted = np.asarray(drawn["layers"][0].getchannel("A"))
    assert np.array_equal(painted, np.asarray(mask()).astype(int) * 6 // 10)  # a veil: it shows through


def test_a_painted_mask_is_what_is_drawn_anew(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlkit.ui.page import code_of, generate, page_from, restored, values_of

    page = Page(width=64, height=64, steps=4)
    painted = mask().point([0] + [255] * 255)
    page.start = Start(photo(), 0.75, painted.resize((128, 128), 0), 0.0)
    values = values_of(page, service, 1)
    drawn, opened = values[-2 * len(page.units) - 2 : -2 * len(page.units)]
    assert opened["open"]
    assert np.array_equal(np.asarray(drawn["background"]), np.asarray(photo()))
    assert np.asarray(drawn["layers"][0].getchannel("A"))[:, :31].min() == 153  # a veil: it shows through
    told = list(generate(service, page_from(tuple(values))))
    assert 'data-state="done" data-steps="3"' in told[-1][0]
    (path,) = service.places.pictures()
    made = np.asarray(ck.open_image(path))
    assert np.array_equal(made[:, 32:], np.asarray(photo())[:, 32:])
    assert not np.array_equal(made[:, :32], np.asarray(photo())[:, :32])
    again = restored(service, path.read_bytes())
    assert fields.recipe_of(again, service.places) == fields.recipe_of(page, service.places)
    code = code_of(service, page)
    assert len(list(service.places.inputs.iterdir())) == 2
    monkeypatch.chdir(service.places.output)
    exec(compile(code, "copied", "exec"), {})
    assert np.array_equal(np.asarray(ck.open_image("again.png")), made)


def test_the_newest_picture_and_its_shape(service: Any) -> None:
    from controlkit.ui.starting import newest, shaped

    with pytest.raises(gradio.Error):
        newest(service)
    service.places.output.mkdir()
    photo(96).save(service.places.output / "a.png")
    picture, drawn, painted = newest(service)
    assert np.array_equal(np.asarray(picture), np.asarray(photo(96)))
    assert drawn["layers"] == []
    assert painted is None
    assert shaped(service, Image.new("RGB", (400, 100)), "embedded:base") == (256, 64)
    assert isinstance(shaped(service, None, "embedded:base")[0], dict)
    with pytest.raises(gradio.Error):
        shaped(service, photo(), "file:../x")


def on(**changes: Any) -> Page:
    page = Page(width=64, height=64)
    page.units[1] = dataclasses.replace(Unit(use=True, image=photo()), **changes)
    return page


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (on(image=None), "control 2: image"),
        (on(module=""), "control 2: module"),
        (on(points="0:1, x"), "control 2: curve"),
        (on(blocks="1; 2"), "control 2: block scales"),
        (on(start=0.9, end=0.1), "start"),
        (on(module="file:../x", detector=NO_DETECTOR), None),
        (Page(seed="many"), "seed"),
        (Page(start=Start(photo(), 0.0)), "init.strength"),
        (Page(start=Start(photo(), 0.5, mask(), margin="x")), "start: margin"),
        (Page(steps=2.5), "steps"),
        (Page(width=33), "32 and 40"),
        (Page(model="hub:"), "model"),
        (Page(model="../elsewhere"), ".."),
    ],
)
def test_what_cannot_be_is_said_by_its_name(places: Any, page: Page, says: str | None) -> None:
    if says is None:
        assert fields.recipe_of(page, places).controls
        return
    with pytest.raises(ck.ControlKitError) as refused:
        fields.recipe_of(page, places)
    assert says in str(refused.value)


def test_a_recipe_with_too_many_controls_is_refused(places: Any) -> None:
    wanted = ck.Recipe.load({"prompt": "x", "controls": [CANNY] * 9})
    with pytest.raises(ck.ParameterError, match="room"):
        fields.page_of(wanted, places)
    guide = Guide(options="[1]")
    with pytest.raises(ck.ParameterError, match="JSON object"):
        fields.guidance_of(guide, 1)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("embedded:base", "embedded:base"),
        ("owner/name", "hub:owner/name"),
        ("here/net", "file:here/net"),
        ("net.safetensors", "file:net.safetensors"),
        (" plugin:x ", "plugin:x"),
    ],
)
def test_what_people_type_for_weights(places: Any, text: str, source: str) -> None:
    (places.models / "here" / "net").mkdir(parents=True)
    assert fields.source_of(text, places, "module") == source
    assert fields.source_of(f"{places.models}/net.pt", places, "module") == "file:net.pt"


def test_a_picture_is_made_and_restores_the_page(service: Any) -> None:
    from controlkit.ui.page import code_of, generate, restored

    page = on(detector="canny", mask=mask())
    page.steps = 3
    told = list(generate(service, page))
    assert 'data-state="done"' in told[-1][0]
    assert "controlnet" in told[-1][3]
    assert told[0][1]
    assert told[-1][1] == ""
    (path,) = service.places.pictures()
    assert path.name in told[-1][2]
    again = restored(service, path.read_bytes())
    assert 'data-state="done"' in list(generate(service, again))[-1][0]
    first, second = (np.asarray(ck.open_image(each)) for each in service.places.pictures())
    assert np.array_equal(first, second)
    code = code_of(service, page)
    assert "inputs/" in code
    assert len(list(service.places.inputs.iterdir())) == 2


COLOUR = {"kind": "color", "target": "red", "scale": 0.5}


@pytest.mark.parametrize(
    ("start", "guide", "images"),
    [
        (Start(photo(), 0.75), None, 1),
        (Start(photo(96), 0.5, resize="crop"), Guide(use=True, **COLOUR), 1),
        (Start(photo(), 1.0, mask(), 2.0, rest={"keep": False}), None, 1),
        (Start(photo(100), 0.75, mask().resize((100, 100)), margin="8"), None, 1),
        (Start(), Guide(use=True, where=mask(), rest={"every": 2}, **COLOUR), 1),
        (Start(), Guide(use=True, kind="edges", image=photo(), start=0.2, end=0.9), 3),
    ],
    ids=["img2img", "img2img with guidance", "inpaint", "inpaint a part", "color there", "edges, three"],
)
def test_copied_python_makes_the_same_pictures_and_so_does_the_restored_page(
    service: Any, monkeypatch: pytest.MonkeyPatch, start: Start, guide: Guide | None, images: int
) -> None:
    from controlkit.ui.page import code_of, generate, restored

    page = Page(width=64, height=64, steps=4, images=images, seed=3, start=start)
    page.guides[0] = guide or page.guides[0]
    if not start.margin:  # which allows no control
        page.units[0] = Unit(use=True, image=photo(), points="0:1, 1:0.5")
    assert 'data-state="done"' in list(generate(service, page))[-1][0]
    made = service.places.pictures()[::-1]
    assert len(made) == images
    for path in made:
        again = restored(service, path.read_bytes())
        assert fields.recipe_of(again, service.places).init == fields.recipe_of(page, service.places).init
    code = code_of(service, page)
    monkeypatch.chdir(service.places.output)
    exec(compile(code, "copied", "exec"), {})
    for number, path in enumerate(made):
        copied = "again.png" if images == 1 else f"again-{number}.png"
        assert np.array_equal(np.asarray(ck.open_image(copied)), np.asarray(ck.open_image(path)))


def test_a_page_that_cannot_be_made_says_so(service: Any) -> None:
    from controlkit.ui.page import generate

    (told,) = generate(service, on(image=None))
    assert "control 2: image" in told[0]
    assert service.jobs.counts["submitted"] == 0


def test_a_browser_that_goes_away_cancels_its_job(service: Any) -> None:
    from controlkit.ui.page import generate

    page = on()
    page.steps = 200
    making = generate(service, page)
    next(making)
    making.close()
    (job,) = service.jobs.all()
    assert job.over.wait(30)
    assert job.state == "cancelled"


def test_prompts_and_errors_are_escaped() -> None:
    from controlkit.ui import style
    from controlkit.ui.panels import _escaped

    assert "<script>" not in style.problem(ck.ParameterError("<script>"))
    assert "<script>" not in style.gallery([Path("<script>.png")])
    assert _escaped("<b>*x*") == "\\<b\\>\\*x\\*"


def test_the_preview_is_the_map_and_doubts_are_told(service: Any) -> None:
    from controlkit.ui.panels import preview

    page = Page(width=64, height=64)
    seen, words = preview(service, page, Unit(image=photo(), detector="canny"), 1)
    assert np.array_equal(np.asarray(seen), np.asarray(ck.preprocess(photo(), "canny")))
    assert "map detected by canny" in words
    scene = ck.embedded.scene(3).image
    _, doubt = preview(service, page, Unit(image=scene, detector=NO_DETECTOR), 1)
    assert "Doubtful" in doubt
    assert preview(service, page, Unit(), 1) == (None, "")
    _, refused = preview(service, page, Unit(image=photo(), module="file:absent"), 1)
    assert "Cannot be used" in refused


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF", b"<svg xmlns='x'/>", b"\x89PNG\r\n\x1a\nbroken", b""]
)
def test_uploads_are_decoded_by_content(tmp_path: Any, content: bytes) -> None:
    from controlkit.ui import widgets

    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(gradio.Error):
        widgets.opened(path)


def test_large_uploads_are_reduced_and_drawings_are_masks(tmp_path: Any) -> None:
    from controlkit.ui import widgets

    Image.new("RGB", (3000, 1500)).save(tmp_path / "large.png")
    assert widgets.opened(tmp_path / "large.png").size == (1536, 768)
    layer = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert widgets.union([layer]) is None
    assert widgets.union([]) is None
    layer.putpixel((2, 3), (255, 0, 0, 90))
    assert widgets.union([layer, Image.new("RGBA", (8, 8))]).getpixel((2, 3)) == 90


def test_every_option_of_every_detector_has_a_widget_that_holds_its_default() -> None:
    from controlkit.ui import listing, widgets

    with gradio.Blocks(analytics_enabled=False):
        for info in listing.detectors():
            for entry in info["options"]:
                widget = widgets.option(entry, entry["default"])
                if entry["default"] is not None and entry["name"] not in widgets.HIDDEN:
                    assert widget.value == entry["default"], (info["name"], entry["name"])


@pytest.mark.parametrize(
    ("condition", "base", "name"),
    [
        ("canny", "embedded", "canny"),
        ("depth", "embedded", "embedded-depth"),
        ("depth", "sd1", "depth"),
        ("seg", "embedded", "embedded-segmentation"),
        ("openpose", "sd1", ""),
        ("", "", ""),
    ],
)
def test_a_module_brings_its_detector(condition: str, base: str, name: str) -> None:
    from controlkit.ui.panels import detector_for

    assert detector_for(condition, base) == name


def test_gradio_fetches_nothing(service: Any) -> None:
    import asyncio

    from gradio import processing_utils

    from controlkit.ui.page import _close_the_network

    _close_the_network()
    with pytest.raises(gradio.Error, match="nothing is fetched"):
        asyncio.run(processing_utils.async_ssrf_protected_get("http://127.0.0.1:1/x"))
    with pytest.raises(gradio.Error, match="nothing is fetched"):
        processing_utils.save_url_to_cache("http://127.0.0.1:1/x", "/tmp")


def test_presets_restore_to_the_bit(service: Any) -> None:
    from controlkit.ui import presets

    wanted = ck.Recipe.load({"prompt": "a house", **RECIPES[9]})
    presets.save(
        service.places, "mine", fields.recipe_of(fields.page_of(wanted, service.places), service.places)
    )
    assert presets.load(service.places, "mine") == wanted
    png = io.BytesIO(png_bytes(photo(), wanted)).getvalue()
    from controlkit.ui.page import restored

    assert fields.recipe_of(restored(service, png), service.places) == wanted
