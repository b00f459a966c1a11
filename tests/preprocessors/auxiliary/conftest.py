"""A folder of published files with random weights, each written when a test first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlkit.preprocessors import free
from tests.preprocessors.auxiliary.published import write

Written = Callable[..., Path]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Given names of published files: a folder that has them, and maybe others."""
    folder = tmp_path_factory.mktemp("published")

    def with_files(*names: str) -> Path:
        for name in names:
            if not (folder / name).is_file():
                write(folder, name)
        return folder

    return with_files


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    free()
    yield
    free()
