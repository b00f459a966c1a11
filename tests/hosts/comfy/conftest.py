"""The real ComfyUI, where the environment names one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.comfy.networks import fuser, image_prompt, style, uni
from tests.hosts.comfy.server import Server, start

NAMES = ("CONTROLKIT_COMFYUI", "CONTROLKIT_COMFYUI_PYTHON")


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; skipped where there is none to run."""
    absent = [name for name in NAMES if not os.environ.get(name)]
    if absent:
        pytest.skip(f"needs a ComfyUI checkout and its interpreter: set {' and '.join(absent)}")
    base = tmp_path_factory.mktemp("comfy")
    script = Path(__file__).with_name("slim.py")
    command = [os.environ[NAMES[1]], str(script), os.environ[NAMES[0]], str(base / "models")]
    subprocess.run(command, check=True, capture_output=True)
    for folder, name, module in (
        ("controlnet", "uni", uni()),
        ("controlnet", "ip", image_prompt(plus=False)),
        ("controlnet", "ip_plus", image_prompt(plus=True)),
        ("style_models", "style", style()),
        ("controlnet", "fuser", fuser()),
    ):
        module.save(base / "models" / folder / name)
    server = start(base)
    yield server
    server.stop()
