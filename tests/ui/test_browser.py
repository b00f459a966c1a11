"""The page in a real browser, on the embedded model, from a photograph to the same picture again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import controlkit as ck
from tests.ui.driver import Driver, pixels


def test_from_a_photograph_to_the_same_picture_again(
    server: tuple[str, Any], browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, service = server
    before_all, before = dict(service.jobs.counts), len(service.places.pictures())
    scene = ck.embedded.scene(3)
    scene.image.save(tmp_path / "photo.png")
    person = Driver(browser, address)
    page = person.page

    # a press that can do nothing says so, and harms nothing
    page.get_by_text("Presets", exact=True).click()
    page.click("#preset-load")
    person.until("a word about it", lambda: "Choose one" in page.inner_text("body"))

    # a photograph, canny, and what the module will see
    person.upload("unit1-image", tmp_path / "photo.png")
    person.seen("unit1")
    assert "map detected by canny" in person.says("unit1-doubt")

    # generating, with previews, and cancelling
    person.set("steps", "100")
    page.click("#go")
    person.until("a preview", lambda: page.query_selector("#stage img.ck-preview"))
    person.until("some steps", lambda: person.stage()[1] >= 3)
    page.click("#cancel")
    person.until("cancelled", lambda: person.stage()[0] == "cancelled", 20)
    assert person.stage()[1] < 100
    assert len(service.places.pictures()) == before

    # the whole way
    person.set("steps", "4")
    first = person.generate()
    assert "controlnet canny" in page.input_value("#report textarea")
    assert "control 1: edges" in person.says("stage")

    # a second control, with a region painted on it
    page.get_by_role("tab", name="Control 2").click()
    person.choose("unit2-module", "embedded:t2i-depth")
    detector = "#unit2-detector input"
    person.until("its detector", lambda: page.input_value(detector) == "embedded-depth")
    person.choose("unit2-detector", "depth")
    person.choose("unit2-detector", "embedded-depth")
    person.upload("unit2-image", tmp_path / "photo.png")
    before = person.seen("unit2")
    page.click("#unit2-region-open button")
    person.paint("unit2-region", 0.45, 0.57, 0.5)
    person.until("the region in the preview", lambda: "acts on" in person.says("unit2-doubt"))
    assert person.seen("unit2") != before
    second = person.generate()
    assert second != first
    made = ck.Recipe.load(service.places.result(second))
    assert [part.module.source for part in made.controls] == [
        "embedded:controlnet-canny",
        "embedded:t2i-depth",
    ]
    assert [part.detect for part in made.controls] == ["canny", "embedded-depth"]
    assert made.controls[1].mask is not None

    # the code makes the same picture
    page.click("#python-open button")
    page.click("#write")
    code = person.until("the code", lambda: _code(page))
    out = service.places.output
    monkeypatch.chdir(out)
    exec(compile(code, "copied", "exec"), {})
    assert np.array_equal(pixels(out / "again.png"), pixels(out / second))

    # a fresh page gets everything back from the picture
    other = Driver(browser, address)
    other.upload("restore", out / second)
    other.until("restored", lambda: "All settings" in other.says("said"))
    assert other.page.input_value("#steps input[type=number]") == "4"
    other.page.get_by_role("tab", name="Control 2 ●").click()
    other.until("its detector", lambda: other.page.input_value(detector) == "embedded-depth")
    other.page.get_by_role("tab", name="Control 3").click()
    other.page.get_by_text("Detector options").locator("visible=true").click()
    other.until("options", lambda: other.page.get_by_text("low threshold").locator("visible=true").count())
    third = other.generate()
    assert np.array_equal(pixels(out / third), pixels(out / second))

    for visitor in (person, other):
        visitor.clean(address)
    counts = {name: count - before_all[name] for name, count in service.jobs.counts.items()}
    assert counts == {"submitted": 4, "done": 3, "failed": 0, "cancelled": 1}


def _code(page: Any) -> str:
    """The code on the page, as a reader would select it."""
    lines = page.evaluate(
        "() => [...document.querySelectorAll('#code .cm-line')].map(line => line.textContent)"
    )
    text = "\n".join(lines)
    return text if "again.png" in text else ""
