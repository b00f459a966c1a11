"""AUTOMATIC1111's own page for real, in a browser: preview, generate, and everything back from a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from tests.hosts.webui.conftest import checkpoints, named
from tests.hosts.webui.networks import write
from tests.hosts.webui.server import FLAGS, Server, sent
from tests.hosts.webui.test_real import A, B
from tests.ui.driver import CHROMIUM

SECOND = 1000
FOLDER = "CONTROLKIT_SCREENSHOTS"
LEFT = "txt2img_controlkit"
"""Ids of the panel begin with it."""


class Paged(Server):
    """With its page."""

    flags = FLAGS.replace("--nowebui ", "")
    paged = True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    checkout, python = named()
    base = tmp_path_factory.mktemp("page")
    checkpoints(base, "tiny")
    write(base)
    running = Paged(checkout, python, base)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser(server: Paged) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as play:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        started = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield started
        started.close()


@pytest.fixture
def person(server: Paged, browser: Any) -> Iterator[Person]:
    made = Person(server, browser)
    yield made
    made.page.context.close()


class Person:
    """Someone at the page."""

    def __init__(self, server: Paged, browser: Any) -> None:
        self.server = server
        self.page: Any = browser.new_context(viewport={"width": 1300, "height": 1400}).new_page()
        self.page.set_default_timeout(60 * SECOND)
        self.page.route("**/*", self._at_home)
        self.page.goto(server.url)
        self.page.wait_for_selector("#txt2img_generate")
        self.page.wait_for_timeout(2 * SECOND)  # its scripts lay the page out anew
        self.page.click(f"#{LEFT} > .label-wrap")
        self.page.wait_for_selector(f"#{LEFT}_0_model")

    def _at_home(self, route: Any) -> None:
        """Nothing outside this machine: the page itself asks for fonts."""
        if route.request.url.startswith(self.server.url):
            route.continue_()
        else:
            route.abort()

    def fill(self, name: str, value: Any) -> None:
        """Write into a field of the web UI's."""
        field = self.page.locator(f"#{name} textarea, #{name} input[type=number]").first
        field.fill(str(value))
        field.blur()

    def choose(self, name: str, value: str) -> None:
        """Choose from a drop-down."""
        self.page.click(f"#{name} input")
        self.page.fill(f"#{name} input", value)
        self.page.click(f'#{name} [role=option][aria-label="{value}"], #{name} li[aria-label="{value}"]')

    def upload(self, name: str, picture: Path) -> None:
        """Put a picture on a field."""
        self.page.set_input_files(f"#{name} input[type=file]", str(picture))
        self.shown(name)

    def shown(self, name: str) -> Any:
        """The picture that a field shows, as pixels (H, W, 3)."""
        image = f"#{name} img"
        self.page.wait_for_function(
            "s => { const e = document.querySelector(s); return e && e.complete && e.naturalWidth > 0 }",
            arg=image,
        )
        values = self.page.eval_on_selector(
            image,
            """e => { const c = document.createElement('canvas'); c.width = e.naturalWidth;
                      c.height = e.naturalHeight; const d = c.getContext('2d'); d.drawImage(e, 0, 0);
                      return [c.height, c.width, ...d.getImageData(0, 0, c.width, c.height).data]; }""",
        )
        return np.array(values[2:], np.uint8).reshape(values[0], values[1], 4)[..., :3]

    def value(self, name: str) -> str:
        """What a text field, number or drop-down holds."""
        return self.page.eval_on_selector(f"#{name} input, #{name} textarea", "e => e.value")

    def enabled(self, name: str) -> bool:
        return self.page.is_checked(f"#{name} input[type=checkbox]")

    def generate(self) -> Path:
        """Press the button; the picture's file."""
        folder = self.server.base / "outputs" / "txt2img-images"
        before = set(folder.rglob("*.png"))
        self.page.click("#txt2img_generate")
        for _ in range(600):
            self.page.wait_for_timeout(100)
            new = set(folder.rglob("*.png")) - before
            if new and self.page.is_visible("#txt2img_gallery img"):
                return new.pop()
        self.screenshot("failed")
        raise AssertionError(f"no picture; the log ends with\n{self.server.log[-1500:]}")

    def screenshot(self, name: str, part: str = "") -> None:
        """Keep a picture of the page, or of a part of it, where the environment names a folder."""
        if folder := os.environ.get(FOLDER):
            what = self.page.locator(part) if part else self.page
            what.screenshot(path=f"{folder}/a1111-{name}.png")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture with a shape in it."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 30) ** 2 + (columns - 34) ** 2 < 400
    pixels = np.where(disc[..., None], (220, 40, 40), (215, 190, 150)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def settings(person: Person) -> None:
    """A small picture, as `Server.make` asks for it."""
    given = {"prompt": "a red brick house", "neg_prompt": "trees", "seed": 3, "steps": 4}
    given |= {"width": 64, "height": 64, "cfg_scale": 2}
    for name, value in given.items():
        person.fill(f"txt2img_{name}", value)


def test_a_picture_from_the_page_and_everything_back_from_it(
    server: Paged, browser: Any, person: Person, photo: Path
) -> None:
    settings(person)
    person.page.check(f"#{LEFT}_0_enabled input")
    person.upload(f"{LEFT}_0_image", photo)
    person.choose(f"{LEFT}_0_model", A)
    person.choose(f"{LEFT}_0_detector", "canny")
    person.page.click(f"#{LEFT}_0_show")
    preview = person.shown(f"{LEFT}_0_preview")
    assert np.array_equal(preview, np.asarray(ck.preprocess(Image.open(photo), "canny")))
    assert "64x64, as the module sees it" in person.page.inner_text(f"#{LEFT}_0_about")
    person.fill(f"{LEFT}_0_weight", 0.7)
    person.screenshot("panel", f"#{LEFT}")
    file = person.generate()

    made = Image.open(file)
    unit = {"model": A, "image": sent(Image.open(photo)), "detector": "canny", "weight": 0.7}
    sampler = {"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}
    assert np.array_equal(np.asarray(made), server.make(unit, **sampler).pixels)
    assert f"ControlKit 0: model={A}; detector=canny; weight=0.7" in made.info["parameters"].replace('"', "")

    other = Person(server, browser)
    assert not other.enabled(f"{LEFT}_0_enabled")
    other.fill("txt2img_prompt", made.info["parameters"])
    other.page.click("#txt2img_tools #paste")
    other.page.wait_for_function(
        f"() => document.querySelector('#{LEFT}_0_model input').value.startsWith('net-a')"
    )
    other.page.wait_for_timeout(SECOND)
    assert other.enabled(f"{LEFT}_0_enabled")
    assert other.value(f"{LEFT}_0_detector") == "canny"
    assert other.value(f"{LEFT}_0_weight") == "0.7"
    assert not other.enabled(f"{LEFT}_1_enabled")
    other.upload(f"{LEFT}_0_image", photo)
    again = Image.open(other.generate())
    assert np.array_equal(np.asarray(again), np.asarray(made))
    other.page.context.close()


def test_an_error_is_told_on_the_page_and_the_next_picture_is_made(
    server: Paged, person: Person, photo: Path
) -> None:
    settings(person)
    person.page.check(f"#{LEFT}_0_enabled input")
    person.choose(f"{LEFT}_0_model", B)
    person.page.click("#txt2img_generate")
    person.page.wait_for_function(
        "() => document.querySelector('#html_log_txt2img').innerText.includes('a picture')"
    )
    person.page.uncheck(f"#{LEFT}_0_enabled input")
    made = Image.open(person.generate())
    plain = server.make(sampler_name="DPM++ 2M", scheduler="Automatic")
    assert np.array_equal(np.asarray(made), plain.pixels)


def test_new_files_are_found(server: Paged, person: Person) -> None:
    new = server.base / "models" / "ControlNet" / "new.safetensors"
    new.touch()
    try:
        person.page.click(f"#{LEFT}_0_refresh")
        person.page.wait_for_timeout(SECOND)
        person.choose(f"{LEFT}_0_model", "new.safetensors")
        assert person.value(f"{LEFT}_0_model") == "new.safetensors"
    finally:
        new.unlink()
