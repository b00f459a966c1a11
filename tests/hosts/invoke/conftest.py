"""The real InvokeAI, where the environment names one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.hosts.invoke.server import ENVIRONMENT, Server
from tests.tiny import pipeline


@pytest.fixture(scope="session")
def place() -> Path:
    """Where InvokeAI is; skipped where there is none."""
    if not os.environ.get(ENVIRONMENT):
        pytest.skip(f"needs InvokeAI: set {ENVIRONMENT} to its interpreter, or the folder that holds that")
    return Path(os.environ[ENVIRONMENT])


@pytest.fixture(scope="session")
def invoke(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, its clone called as the package is, with a tiny model in its models folder."""
    base = tmp_path_factory.mktemp("invoke") / "root"
    folder = base / "models" / "controlkit" / "tiny"
    pipeline().save_pretrained(folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": w for name, w in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})  # as published: InvokeAI's transformers reads no other names
    server = Server(base, "controlkit")
    yield server
    server.stop()
