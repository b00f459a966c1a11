"""What every test gets: options, a closed network, fixed seeds, one tolerance table."""

from __future__ import annotations

import os
import random
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TOLERANCES = {
    "float64": {"rtol": 1e-9, "atol": 1e-10},
    "float32": {"rtol": 1e-4, "atol": 1e-5},
    "bfloat16": {"rtol": 2e-2, "atol": 2e-2},
    "float16": {"rtol": 5e-3, "atol": 5e-3},
}
"""For comparisons that rounding may change; where the operations are the same, compare exactly."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests that are marked slow too")
    parser.addoption("--device", default="cpu", help="where tests compute: cpu, cuda, mps")
    parser.addoption("--dtype", default="float32", choices=sorted(TOLERANCES), help="in what they compute")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--runslow"):
        slow = [item for item in items if "slow" in item.keywords]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if "slow" not in item.keywords]
    if any("gpu" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if "gpu" in item.keywords:
                    item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where to compute: ``--device``."""
    return str(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """In what to compute: ``--dtype``."""
    import torch

    return getattr(torch, str(request.config.getoption("--dtype")))


@pytest.fixture
def tolerance(request: pytest.FixtureRequest) -> dict[str, float]:
    """``rtol`` and ``atol`` for ``--dtype``, as `torch.testing.assert_close` takes them."""
    return dict(TOLERANCES[str(request.config.getoption("--dtype"))])


@pytest.fixture(autouse=True)
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection but to this machine: no test may depend on the network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family != getattr(socket, "AF_UNIX", None) and host not in ("127.0.0.1", "::1", "localhost"):
            raise PermissionError(f"a test tried to connect to {address}; tests run without a network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, without importing torch for those that do not."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
