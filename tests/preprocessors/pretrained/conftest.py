"""Small networks, saved once for all tests of a process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.preprocessors.pretrained import small


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small network; not to be changed."""
    return cache(lambda name: small.save(tmp_path_factory.mktemp(name), name))


@pytest.fixture
def spoilt(folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of it that a test may change."""
    return lambda name: Path(shutil.copytree(folder(name), tmp_path / name))
