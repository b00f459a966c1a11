"""The real web UI, where the environment names one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.webui.networks import write
from tests.hosts.webui.server import Server

NAMES = ("CONTROLKIT_A1111", "CONTROLKIT_A1111_PYTHON")


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; skipped where there is none to run."""
    absent = [name for name in NAMES if not os.environ.get(name)]
    if absent:
        pytest.skip(f"needs a checkout of AUTOMATIC1111's web UI and its Python: set {' and '.join(absent)}")
    base = tmp_path_factory.mktemp("webui")
    checkout, python = (os.environ[name] for name in NAMES)
    script = Path(__file__).with_name("tiny.py")
    subprocess.run([python, str(script), checkout, str(base)], check=True, capture_output=True)
    write(base)
    without = Server(Path(checkout), python, base, extensions=False)
    try:
        picture = without.make()
    finally:
        without.stop()
    server = Server(Path(checkout), python, base)
    server.bare = picture
    yield server
    server.stop()
