"""A person at the page, in a real browser: what the browser tests share."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = (
    os.environ.get("CONTROLKIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
SECOND = 1000


class Driver:
    """A person at the page."""

    def __init__(
        self, browser: Any, address: str, width: int = 1400, height: int = 1000, **context: Any
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
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

    def set(self, name: str, value: str) -> None:
        self.page.fill(f"#{name} input[type=number]", value)
        self.page.press(f"#{name} input[type=number]", "Tab")

    def paint(self, name: str, left: float, right: float, height: float) -> None:
        """A stroke on a canvas, in fractions of it."""
        canvas = self.page.locator(f"#{name} canvas").first
        canvas.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        box = canvas.bounding_box()
        self.page.mouse.move(box["x"] + box["width"] * left, box["y"] + box["height"] * height)
        self.page.wait_for_timeout(100)
        self.page.mouse.down()
        for step in range(1, 9):
            at = left + (right - left) * step / 8
            self.page.mouse.move(box["x"] + box["width"] * at, box["y"] + box["height"] * height)
        self.page.mouse.up()

    def points(self) -> str:
        return self.page.input_value("#unit1-points textarea, #unit1-points input")

    def clean(self, address: str) -> None:
        """Nothing went wrong on the page, and nothing was asked of others."""
        strangers = [url for url in self.asked if not url.startswith((address, "data:", "blob:"))]
        assert not strangers
        assert not self.errors
        self.context.close()

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
