"""The page in a real browser, on the embedded model, from a photograph to the same picture again."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck

CHROMIUM = (
    os.environ.get("CONTROLKIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
SECOND = 1000

if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
pytest.importorskip("gradio", reason="no gradio: pip install 'controlkit[ui]'")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """A server on a free port of this machine: its address, and what it offers."""
    import uvicorn

    from controlkit.ui.guard import Door
    from controlkit.ui.serving import Settings, application

    app, service = application(Settings(tmp_path / "out", door=Door()))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: running.run(sockets=[listener]), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
    running.should_exit = True
    thread.join(20)
    service.jobs.close(20)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    with playwright.sync_playwright() as play:
        started = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


class Driver:
    """A person at the page."""

    def __init__(self, browser: Any, address: str, width: int = 1400, height: int = 1000) -> None:
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_default_timeout(30 * SECOND)
        self.page.goto(address)
        self.page.wait_for_selector("#go")

    def until(self, what: str, holds: Any, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := holds():
                return found
            self.page.wait_for_timeout(50)
        if folder := os.environ.get("CONTROLKIT_SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/failed.png", full_page=True)
        raise AssertionError(f"not within {seconds:g} s: {what}; the stage says {self.stage()}")

    def stage(self) -> tuple[str, int]:
        state = self.page.eval_on_selector(
            "#stage .ck-stage", "e => [e.dataset.state || '', Number(e.dataset.steps || 0)]"
        )
        return state[0], state[1]

    def generate(self) -> str:
        """Press the button and wait; the name of the picture."""
        before = self.shown()
        self.page.click("#go")
        return self.until("done", lambda: (now := self.shown()) != before and now)

    def shown(self) -> str:
        """The name of the picture on the stage, once its job is done."""
        return self.page.evaluate(
            """() => {
                const stage = document.querySelector('#stage .ck-stage')
                const image = stage.querySelector("img[alt='the picture']")
                return stage.dataset.state == 'done' && image ? image.src.split('/').pop() : ''
            }"""
        )

    def choose(self, name: str, value: str) -> None:
        self.page.locator(f"#{name} input").first.click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def upload(self, name: str, path: Path) -> None:
        self.page.set_input_files(f"#{name} input[type=file]", str(path))

    def seen(self, unit: str) -> str:
        """The address of the preview of a unit, once it is there."""
        image = f"#{unit}-seen img"
        script = f"() => {{const i = document.querySelector('{image}'); return i?.naturalWidth ? i.src : ''}}"
        return self.until(f"{unit} preview", lambda: self.page.evaluate(script))

    def says(self, name: str) -> str:
        return self.page.inner_text(f"#{name}")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_from_a_photograph_to_the_same_picture_again(
    server: tuple[str, Any], browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, service = server
    scene = ck.embedded.scene(3)
    scene.image.save(tmp_path / "photo.png")
    person = Driver(browser, address)
    page = person.page

    # a photograph, canny, and what the module will see
    person.upload("unit1-image", tmp_path / "photo.png")
    person.seen("unit1")
    assert "map detected by canny" in person.says("unit1-doubt")

    # generating, with previews, and cancelling
    page.fill("#steps input[type=number]", "100")
    page.press("#steps input[type=number]", "Tab")
    page.click("#go")
    person.until("a preview", lambda: page.query_selector("#stage img.ck-preview"))
    person.until("some steps", lambda: person.stage()[1] >= 3)
    page.click("#cancel")
    person.until("cancelled", lambda: person.stage()[0] == "cancelled", 20)
    assert person.stage()[1] < 100
    assert not service.places.pictures()

    # the whole way
    page.fill("#steps input[type=number]", "6")
    page.press("#steps input[type=number]", "Tab")
    first = person.generate()
    assert "controlnet canny" in page.input_value("#report textarea")

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
    canvas = page.locator("#unit2-region canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(700)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    for step in range(12):
        page.mouse.move(box["x"] + box["width"] * (0.45 + 0.01 * step), box["y"] + box["height"] * 0.5)
    page.mouse.up()
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
    assert other.page.input_value("#steps input[type=number]") == "6"
    third = other.generate()
    assert np.array_equal(pixels(out / third), pixels(out / second))

    for visitor in (person, other):
        strangers = [url for url in visitor.asked if not url.startswith((address, "data:", "blob:"))]
        assert not strangers
        assert not visitor.errors
    counts = service.jobs.counts
    assert counts == {"submitted": 4, "done": 3, "failed": 0, "cancelled": 1}


def _code(page: Any) -> str:
    """The code on the page, as a reader would select it."""
    lines = page.evaluate(
        "() => [...document.querySelectorAll('#code .cm-line')].map(line => line.textContent)"
    )
    text = "\n".join(lines)
    return text if "again.png" in text else ""


def test_on_a_phone_nothing_is_wider_than_the_screen(server: tuple[str, Any], browser: Any) -> None:
    person = Driver(browser, server[0], width=390, height=844)
    person.page.wait_for_timeout(500)
    wide = person.page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= 390
    button = person.page.locator("#go").bounding_box()
    assert button is not None
    assert button["x"] >= 0
    assert button["x"] + button["width"] <= 390
    assert not person.errors
