"""The command line with tiny random models in place of the embedded ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlkit import embedded
from controlkit.cli import main
from tests import tiny


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.split()


Command = Callable[..., Done]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONTROLKIT_DEBUG", raising=False)

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        code = main(arguments)
        streams = capfd.readouterr()
        return Done(code, streams.out, streams.err)

    return run


@pytest.fixture
def tiny_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`controlkit.embedded` with a tiny pipeline, a ControlNet and a T2I-Adapter."""
    modules: dict[str, Any] = {"controlnet-canny": tiny.controlnet, "t2i-depth": tiny.t2i_adapter}
    monkeypatch.setattr(embedded, "pipeline", lambda dtype=None, device=None: tiny.pipeline(), raising=False)
    monkeypatch.setattr(embedded, "names", lambda: list(modules), raising=False)
    monkeypatch.setattr(embedded, "load", lambda name: modules[name](), raising=False)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture with edges, 64 x 64."""
    values = np.zeros((64, 64, 3), np.uint8)
    values[16:48, 16:48] = (200, 40, 40)
    path = tmp_path / "photo.png"
    Image.fromarray(values).save(path)
    return path
