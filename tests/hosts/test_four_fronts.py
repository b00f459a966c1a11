"""One settings file, four fronts: Python, the page, ComfyUI and AUTOMATIC1111 predict the same noise.

And Forge, a fifth, on a checkpoint that it takes. Compared is what each U-Net predicted, after guidance by
the prompt. It cannot be had back from the clean pictures that samplers pass on: at the last level, σ = 0.03,
where latents reach 48, (x - (x - σε)) / σ in float32 is 6e-5 off ε within one front.
"""

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
from tests.hosts.forge.conftest import NAMES as FORGE
from tests.hosts.forge.server import Server as Forge
from tests.hosts.webui.conftest import NAMES as WEBUI
from tests.hosts.webui.server import Server as WebUI

CLOSE = 1e-4
SEEN = 0.01
"""The least by which a control must change each step's noise, whose largest number is between 1 and 2."""
TINY = Path(__file__).with_name("webui") / "tiny.py"
SLIM = Path(__file__).with_name("forge") / "slim.py"
RECORDER = Path(__file__).with_name("recorder")


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
    server = WebUI(Path(os.environ[WEBUI[0]]), os.environ[WEBUI[1]], base, others={"recorder": RECORDER})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    absent = [name for name in FORGE if not os.environ.get(name)]
    if absent:
        pytest.skip(f"needs a checkout of Forge and its Python: set {' and '.join(absent)}")
    folder = tmp_path_factory.mktemp("forge")
    checkout, python = (os.environ[name] for name in FORGE)
    subprocess.run([python, str(SLIM), checkout, str(folder)], check=True, capture_output=True)
    fronts.forge_models(folder, Path(checkout))
    server = Forge(Path(checkout), python, folder, others={"recorder": RECORDER})
    yield server
    server.stop()


def apart(steps: list[Tensor], others: list[Tensor]) -> list[float]:
    return [float((one - other).abs().max()) for one, other in zip(steps, others, strict=True)]


def assert_same(file: Path, found: dict[str, list[Tensor]]) -> None:
    """That fronts predicted what Python does at each step, where every control changes what is predicted."""
    expected = fronts.by_python(file)
    assert len(expected) == 4
    for number, first in enumerate(fronts.FIRST):
        changes = apart(expected, fronts.by_python(file, without=number))
        assert max(changes[:first], default=0.0) == 0.0
        assert min(changes[first:]) > SEEN, f"control {number} must be seen from step {first} on: {changes}"
    seen = {name: apart(expected, steps) for name, steps in found.items()}
    assert max(step for steps in seen.values() for step in steps) < CLOSE, seen


def test_one_settings_file_gives_the_same_noise_at_each_step_in_four_fronts(
    base: Path, comfy: Comfy, webui: WebUI
) -> None:
    file = fronts.settings(base)
    found = {
        "page": fronts.by_page(file),
        "comfyui": fronts.by_comfy(comfy, file),
        "web ui": fronts.by_webui(webui, file),
    }
    assert_same(file, found)


def test_one_settings_file_gives_the_same_noise_at_each_step_in_forge(forge: Forge) -> None:
    file = fronts.settings(forge.base, "slim")
    assert_same(file, {"page": fronts.by_page(file), "forge": fronts.by_webui(forge, file)})
