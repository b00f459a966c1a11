"""The page in a real browser: a map painted by hand, the curve, the grid; a phone with its camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import controlkit as ck
from tests.ui.driver import Driver


def test_a_map_painted_by_hand_with_a_curve_as_a_grid(server: tuple[str, Any], browser: Any) -> None:
    address, service = server
    person = Driver(browser, address)
    page = person.page

    # an empty canvas of the run's size, painted on, is the map
    page.click("#unit1-paint-open button")
    page.click("#unit1-empty")
    person.until("the canvas", lambda: "%" in person.says("unit1-paint"))
    person.paint("unit1-paint", 0.4, 0.6, 0.3)
    page.wait_for_timeout(1000)
    page.click("#unit1-paint-use")
    person.until("the map", lambda: "128 x 128" in person.says("unit1-doubt"))
    assert page.input_value("#unit1-detector input") == "none: it is a map"

    # the curve is dragged, by mouse and by keyboard, and follows the text
    dot = page.locator("#unit1-curve .ck-dot")
    dot.nth(1).scroll_into_view_if_needed()
    box, plot = dot.nth(1).bounding_box(), page.locator("#unit1-curve svg").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 30, steps=3)
    page.mouse.up()
    first, last = _curve(person.points())
    assert first == (0, 1)
    assert last[0] == 1
    assert 0.3 < last[1] < 0.9
    page.mouse.dblclick(plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] * 0.2)
    _, added, _ = _curve(person.points())
    assert 0.4 < added[0] < 0.6
    assert added[1] > 1.2
    page.locator("#unit1-curve .ck-spot").nth(1).focus()
    page.keyboard.press("ArrowDown")
    assert _curve(person.points())[1] == (added[0], pytest.approx(added[1] - 0.05))
    page.keyboard.press("Delete")
    assert len(_curve(person.points())) == 2
    page.fill("#unit1-points textarea, #unit1-points input", "0:1, 0.5:0.2, 0.75:0")
    person.until("the curve follows", lambda: dot.count() == 3)

    # a grid of it
    person.set("steps", "2")
    page.click("#sweep-open button")
    page.fill("#sweep-scales textarea, #sweep-scales input", "0.5, 1")
    page.fill("#sweep-seeds textarea, #sweep-seeds input", "3")
    page.click("#sweep-go")
    width = """() => document.querySelector("#stage img[alt='the grid']")?.naturalWidth || 0"""
    person.until("the grid", lambda: page.evaluate(width) > 2 * 128)
    sheet, second, first_made = service.places.pictures()[:3]
    assert "grid" in sheet.name
    scales = [ck.Recipe.load(each).controls[0].scale for each in (first_made, second)]
    assert scales == [((0, 0.5), (0.5, 0.1), (0.75, 0)), ((0, 1), (0.5, 0.2), (0.75, 0))]
    painted = ck.Recipe.load(second).controls[0]
    assert painted.detect is None
    values = np.asarray(service.places.files.picture(painted.image))
    assert values.shape == (128, 128, 3)
    assert set(np.unique(values)) == {0, 255}
    assert 0 < (values > 0).mean() < 0.2

    # and back
    other = Driver(browser, address)
    other.upload("restore", sheet)
    other.until("restored", lambda: "All settings" in other.says("said"))
    assert other.points() == "0.0:1.0, 0.5:0.2, 0.75:0.0"
    seeds = "#sweep-seeds textarea, #sweep-seeds input"
    other.until("the grid's fields", lambda: other.page.is_visible("#sweep-seeds"))
    assert other.page.input_value(seeds) == "3"

    # a picture of the gallery gives its settings without a file
    other.page.fill("#prompt textarea", "something else")
    other.page.click(f"#gallery .ck-again[data-name='{first_made.name}']")
    other.until("its settings", lambda: first_made.name in other.says("said"))
    assert other.points() == "0.0:0.5, 0.5:0.1, 0.75:0.0"
    assert other.page.input_value("#prompt textarea") == "a red cube on a sand floor"
    assert other.page.get_by_role("tab", name="Control 1 ●").is_visible()

    # the preset called default is what a page begins with, from then on
    other.page.get_by_text("Presets", exact=True).click()
    other.page.fill("#preset-name textarea, #preset-name input", "default")
    other.page.click("#preset-save")
    other.until("saved", lambda: "Saved as default" in other.says("said"))
    other.page.reload()
    other.until("the same page", lambda: other.page.is_visible("#unit1-points"))
    other.until("its curve", lambda: other.points() == "0.0:0.5, 0.5:0.1, 0.75:0.0")
    service.places.preset("default").unlink()
    for visitor in (person, other):
        visitor.clean(address)


def _curve(text: str) -> list[tuple[float, float]]:
    pairs = [part.split(":") for part in text.split(",")]
    return [(float(at), float(scale)) for at, scale in pairs]


def test_on_a_phone_nothing_is_wider_and_camera_and_curve_work_by_touch(
    server: tuple[str, Any], browser: Any
) -> None:
    person = Driver(browser, server[0], width=390, height=844, has_touch=True, permissions=["camera"])
    page = person.page
    page.tap("#unit1-image button[aria-label='Capture from camera']")
    page.get_by_text("Click to Access Webcam").tap()
    running = "() => (document.querySelector('#unit1-image video')?.videoWidth || 0) > 0"
    person.until("the camera", lambda: page.evaluate(running), 20)
    page.wait_for_timeout(300)
    page.locator("#unit1-image button[aria-label='capture photo']").tap()
    person.seen("unit1")
    assert "map detected by canny" in person.says("unit1-doubt")

    wide = page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= 390
    button = page.locator("#go").bounding_box()
    assert button is not None
    assert button["x"] >= 0
    assert button["x"] + button["width"] <= 390

    dot = page.locator("#unit1-curve .ck-dot").nth(1)
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = person.context.new_cdp_session(page)
    for kind, moved in (("Start", 0), *(("Move", 5 * k) for k in range(1, 7))):
        where = [{"x": x, "y": y + moved}]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": where})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert _curve(person.points())[1][1] < 0.6
    page.touchscreen.tap(x, y + 30)
    page.wait_for_timeout(100)
    page.touchscreen.tap(x, y + 30)
    assert len(_curve(person.points())) == 1
    person.clean(server[0])
