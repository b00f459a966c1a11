"""The embedded models replaced by tiny random ones: what recipes do does not depend on training."""

from __future__ import annotations

from typing import Any

import pytest

from controlkit import embedded
from tests import tiny


@pytest.fixture
def tiny_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`controlkit.embedded` with a tiny pipeline, a ControlNet and a T2I-Adapter."""
    modules: dict[str, Any] = {"controlnet-canny": tiny.controlnet, "t2i-depth": tiny.t2i_adapter}
    monkeypatch.setattr(embedded, "pipeline", lambda dtype=None, device=None: tiny.pipeline(), raising=False)
    monkeypatch.setattr(embedded, "names", lambda: list(modules), raising=False)
    monkeypatch.setattr(embedded, "load", lambda name: modules[name](), raising=False)
