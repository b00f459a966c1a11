"""A server on tiny random models, without a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlkit import embedded
from tests import tiny
from tests.ui.driver import CHROMIUM

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'controlkit[ui]'")

ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture
def tiny_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`controlkit.embedded` with a tiny pipeline, a ControlNet and a T2I-Adapter."""
    modules: dict[str, Any] = {"controlnet-canny": tiny.controlnet, "t2i-depth": tiny.t2i_adapter}
    monkeypatch.setattr(embedded, "pipeline", lambda dtype=None, device=None: tiny.pipeline(), raising=False)
    monkeypatch.setattr(embedded, "load", lambda name: modules[name](), raising=False)


@pytest.fixture
def places(tmp_path: Path) -> Any:
    """An output folder and a folder of models, with a secret beside them."""
    from controlkit.ui.places import Places

    (tmp_path / "models").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    return Places(tmp_path / "out", tmp_path / "models")


@pytest.fixture
def service(tiny_embedded: None, places: Any) -> Iterator[Any]:
    """The server without HTTP."""
    from controlkit.ui.service import Service

    made = Service(places)
    yield made
    made.jobs.close()


@pytest.fixture
def client(service: Any) -> Iterator[Any]:
    """A client of the whole application behind its door, without the page."""
    from fastapi.testclient import TestClient

    from controlkit.ui.api import make_app
    from controlkit.ui.guard import Door, Guard
    from controlkit.ui.webui import add_routes

    app = make_app(service)
    add_routes(app, service)
    guarded: Any = Guard(app, Door())
    with TestClient(guarded, base_url=ADDRESS, raise_server_exceptions=False) as made:
        yield made


def photo(size: int = 64) -> Image.Image:
    """A picture with edges."""
    values = np.zeros((size, size, 3), np.uint8)
    values[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = (200, 40, 40)
    return Image.fromarray(values)


def recipe(**changes: Any) -> dict[str, Any]:
    """A recipe with a control, as JSON has it."""
    from controlkit.recipes import encode

    control = {
        "module": "embedded:controlnet-canny",
        "image": {"data": encode(photo())},
        "detect": "canny",
        "end": 0.8,
    }
    given = {"prompt": "a house", "steps": 3, "width": 64, "height": 64, "seed": 5, "controls": [control]}
    given |= changes
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """A server on a free port of this machine: its address, and what it offers."""
    pytest.importorskip("gradio", reason="no gradio: pip install 'controlkit[ui]'")
    import uvicorn

    from controlkit.ui.guard import Door
    from controlkit.ui.serving import Settings, application

    app, service = application(Settings(tmp_path_factory.mktemp("server") / "out", door=Door()))
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, with a camera that shows a test picture.

    Not for the whole session: while Playwright is there, no other test of it could run an event loop.
    """
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as play:
        started = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *camera],
        )
        yield started
        started.close()
