"""One settings file, four fronts: Python, the page, ComfyUI and AUTOMATIC1111 predict the same noise."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from tests.hosts import fronts
from tests.hosts.comfy.conftest import NAMES as COMFY
from tests.hosts.comfy.server import Server as Comfy
from tests.hosts.comfy.server import start
from tests.hosts.webui.conftest import NAMES as WEBUI
from tests.hosts.webui.server import Server as WebUI

CLOSE = 1e-4
TINY = Path(__file__).with_name("webui") / "tiny.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, as every front reads it; skipped where a host is missing."""
    absent = [name for name in (*COMFY, *WEBUI) if not os.environ.get(name)]
    if absent:
        pytest.skip(
            f"needs ComfyUI and AUTOMATIC1111's web UI with their interpreters: set {', '.join(absent)}"
        )
    folder = tmp_path_factory.mktemp("four")
    checkout, python = (os.environ[name] for name in WEBUI)
    subprocess.run([python, str(TINY), checkout, str(folder)], check=True, capture_output=True)
    fronts.models(folder)
    return folder


@pytest.fixture(scope="module")
def comfy(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    server = start(tmp_path_factory.mktemp("comfy"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def webui(base: Path) -> Iterator[WebUI]:
    server = WebUI(Path(os.environ[WEBUI[0]]), os.environ[WEBUI[1]], base)
    yield server
    server.stop()


def apart(steps: list[Tensor], others: list[Tensor]) -> list[float]:
    return [float((one - other).abs().max()) for one, other in zip(steps, others, strict=True)]


def test_one_settings_file_gives_the_same_noise_at_each_step_in_four_fronts(
    base: Path, comfy: Comfy, webui: WebUI
) -> None:
    file = fronts.settings(base)
    expected, plain = fronts.by_python(file), fronts.by_python(file, bare=True)
    assert len(expected) == 4
    assert min(apart(expected, plain)) > 0.05, "the controls are seen at every step"
    found = {
        "page": fronts.by_page(file),
        "comfyui": fronts.by_comfy(comfy, file),
        "web ui": fronts.by_webui(webui, file),
    }
    seen = {name: apart(expected, steps) for name, steps in found.items()}
    print(seen)
    assert max(step for steps in seen.values() for step in steps) < CLOSE, seen
