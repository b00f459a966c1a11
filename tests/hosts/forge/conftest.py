"""The real Forge, where the environment names one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.forge.server import Server

NAMES = ("CONTROLKIT_FORGE", "CONTROLKIT_FORGE_PYTHON")


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; skipped where there is none to run."""
    absent = [name for name in NAMES if not os.environ.get(name)]
    if absent:
        pytest.skip(f"needs a checkout of Forge and its Python: set {' and '.join(absent)}")
    from tests.hosts.forge.networks import slim_unet, write
    from tests.hosts.webui import kinds

    base = tmp_path_factory.mktemp("forge")
    checkout, python = (os.environ[name] for name in NAMES)
    script = Path(__file__).with_name("slim.py")
    subprocess.run([python, str(script), checkout, str(base)], check=True, capture_output=True)
    write(base)
    kinds.write(base, slim_unet(base), widths=(320, 320), tokens=768, heads=8, zeros=0.02)
    without = Server(Path(checkout), python, base, extensions=False)
    try:
        picture = without.make()
    finally:
        without.stop()
    server = Server(Path(checkout), python, base)
    server.bare = picture
    yield server
    server.stop()
