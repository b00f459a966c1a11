"""In a real browser: a picture to start from, what is painted on it drawn anew, the rest kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import controlkit as ck
from tests.ui.driver import SECOND, Driver, pixels


def _share(person: Driver) -> int:
    """How much of the picture the page says is painted, in percent."""
    said = person.says("start-said").strip().split("\n")[-1]
    return int(said.partition("%")[0]) if "% of the picture" in said else 0


def _settled(person: Driver, name: str) -> bool:
    """Whether what it says stays the same for a second."""
    before = person.says(name)
    person.page.wait_for_timeout(SECOND)
    return person.says(name) == before


def test_a_mask_painted_on_a_picture_is_drawn_anew(
    server: tuple[str, Any], browser: Any, tmp_path: Path
) -> None:
    address, service = server
    scene = ck.embedded.scene(3)
    scene.image.save(tmp_path / "photo.png")
    person = Driver(browser, address)
    page = person.page
    page.click("#start-open button")
    person.upload("start-image", tmp_path / "photo.png")
    canvas = page.locator("#start-mask canvas").first
    canvas.scroll_into_view_if_needed()
    person.until("the picture at its size", lambda: "100%" not in person.says("start-mask"))
    person.until("no more zooming", lambda: _settled(person, "start-mask"))
    box = canvas.bounding_box()
    sphere = np.argwhere(np.asarray(scene.labels) > 0)
    top, left, bottom, right = (*sphere.min(axis=0), *sphere.max(axis=0))
    zoom = int(page.locator("#start-mask").get_by_text("%").inner_text().strip(" %")) / 100
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    x = [middle[0] + zoom * (at - scene.image.width / 2) for at in (left, right)]
    rows = [middle[1] + zoom * (row - scene.image.height / 2) for row in np.linspace(top, bottom, 6)]
    page.mouse.move(x[0], rows[0])
    page.mouse.down()
    for number, y in enumerate(rows):
        page.mouse.move(x[number % 2], y, steps=2)
        page.mouse.move(x[1 - number % 2], y, steps=2)
    page.mouse.up()
    page.fill("#start-strength input[type=number]", "1")
    page.press("#start-strength input[type=number]", "Tab")
    page.fill("#prompt textarea", "a blue cube on a sand floor")
    person.until("all of the stroke", lambda: _share(person) >= 35 and _settled(person, "start-said"))
    name = person.generate()
    if folder := os.environ.get("CONTROLKIT_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/start.png", full_page=True)
    init = ck.Recipe.load(service.places.result(name)).init
    assert init is not None
    assert init.strength == 1
    assert init.mask is not None
    painted = np.asarray(service.places.files.picture(init.mask)) >= 128
    assert painted[np.asarray(scene.labels) > 0].mean() > 0.9
    assert not painted[:, : max(0, left - 30)].any()
    made, given = pixels(service.places.result(name)).astype(int), np.asarray(scene.image).astype(int)
    assert np.array_equal(made[:, : max(0, left - 40)], given[:, : max(0, left - 40)])
    centre = tuple(np.round(sphere.mean(axis=0)).astype(int))
    assert given[centre].argmax() == 0, "a red sphere"
    assert made[centre].argmax() == 2, "a blue cube"
    person.clean(address)
