"""The real web UI, where the environment names one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hosts.webui import kinds
from tests.hosts.webui.networks import write, write_theirs
from tests.hosts.webui.server import Server, sent

NAMES = ("CONTROLKIT_A1111", "CONTROLKIT_A1111_PYTHON")


THEIR_MAP = np.random.default_rng(8).integers(0, 255, (64, 64, 3), np.uint8)
THEIRS = "CONTROLKIT_A1111_CONTROLNET"
"""Where sd-webui-controlnet lies."""


def named() -> tuple[Path, str]:
    """The checkout and its interpreter; skipped where there is none to run."""
    absent = [name for name in NAMES if not os.environ.get(name)]
    if absent:
        pytest.skip(f"needs a checkout of AUTOMATIC1111's web UI and its Python: set {' and '.join(absent)}")
    checkout, python = (os.environ[name] for name in NAMES)
    return Path(checkout), python


def checkpoints(base: Path, *names: str) -> None:
    """Write tiny checkpoints."""
    checkout, python = named()
    script = Path(__file__).with_name("tiny.py")
    subprocess.run([python, str(script), str(checkout), str(base), *names], check=True, capture_output=True)


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; skipped where there is none to run."""
    checkout, python = named()
    base = tmp_path_factory.mktemp("webui")
    checkpoints(base, "tiny")
    write(base)
    kinds.write(base)
    without = Server(checkout, python, base, extensions=False)
    try:
        picture = without.make()
    finally:
        without.stop()
    server = Server(checkout, python, base)
    server.bare = picture
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kinds_of_models(webui: Server) -> Server:
    """The same server with checkpoints of other kinds among its files."""
    checkpoints(webui.base, "tiny-v", "tiny-inpaint", "tiny-xl")
    write(webui.base, "tiny-xl")
    kinds.write_image_prompt(webui.base, "tiny-xl")
    webui.post("/sdapi/v1/refresh-checkpoints", {})
    return webui


@pytest.fixture(scope="session")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with sd-webui-controlnet beside us; skipped where the environment names none."""
    checkout, python = named()
    place = os.environ.get(THEIRS)
    if not place:
        pytest.skip(f"needs a checkout of sd-webui-controlnet that runs in the web UI: set {THEIRS}")
    base = tmp_path_factory.mktemp("neighbours")
    checkpoints(base, "tiny-shaped")
    write(base, "tiny-shaped")
    write_theirs(base)
    kinds.write_encoder(base)
    kinds.write_style(base)
    kinds.write_image_prompt(base, "tiny-shaped")
    options: Any = {"others": {"sd-webui-controlnet": Path(place)}, "checkpoint": "tiny-shaped.safetensors"}
    without = Server(checkout, python, base, extensions=False, **options)
    try:
        bare = without.make()
        theirs = {name: without.make(theirs=[given]) for name, given in neighbourly().items()}
    finally:
        without.stop()
    server = Server(checkout, python, base, **options)
    server.bare, server.theirs = bare, theirs
    yield server
    server.stop()


def neighbourly() -> dict[str, dict[str, Any]]:
    """Units of sd-webui-controlnet, by what they are; each with the same picture."""
    given = {
        "enabled": True,
        "module": "none",
        "image": sent(THEIR_MAP),
        "weight": 0.8,
        "resize_mode": "Just Resize",
    }
    return {name: {**given, "model": f"theirs-{name}"} for name in ("net", "adapter")}
