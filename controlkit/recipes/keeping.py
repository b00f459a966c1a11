"""Pipelines and modules kept from one recipe to the next, in bounded number, for programs that run many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.recipes.building import Modules, pipeline_of
from controlkit.recipes.images import Files
from controlkit.recipes.model import ModelRecipe

if TYPE_CHECKING:
    from controlkit.module import ControlModule

MOST_FILES = 1000
"""Files of a folder that are looked at to see whether it has changed."""


class Keeper:
    """What `results` takes from one recipe to the next: the last pipeline, and the modules used last.

    The same recipe makes the same picture with and without it. For one thread at a time.

    Args:
        modules: How many modules are kept at most, beside those of the recipe at hand.
    """

    def __init__(self, modules: int = 8) -> None:
        self._most = modules
        self._model: tuple[str, object, object] | None = None
        self._pipeline: Any = None
        self._loaded: dict[str, ControlModule] = {}
        self._guides: dict[str, Any] = {}
        self._stamps: dict[str, object] = {}

    def pipeline(self, model: ModelRecipe, files: Files) -> Any:
        """The pipeline of this model: the one at hand where it is the same, else that is dropped first."""
        key = (model.model_dump_json(), _stamp(model.source, files), _stamp(model.config or "", files))
        if self._model != key:
            self._model = self._pipeline = None
            self._pipeline = pipeline_of(model, files)
            self._model = key
        return self._pipeline

    def modules(self, sources: dict[str, str], files: Files) -> Modules:
        """The modules at hand, those whose files have changed left out.

        Args:
            sources: By the module's part of the recipe, as JSON: its source.
            files: Where they are looked for.
        """
        for part, source in sources.items():
            stamp = _stamp(source, files)
            if self._stamps.get(part, stamp) != stamp:
                self._loaded.pop(part, None)
            self._stamps[part] = stamp
            if part in self._loaded:  # to the end: the last that is dropped
                self._loaded[part] = self._loaded.pop(part)
        others = [part for part in self._loaded if part not in sources]
        for part in others[: max(0, len(others) - self._most)]:
            del self._loaded[part]
        self._stamps = {
            part: self._stamps[part] for part in {*self._loaded, *sources} if part in self._stamps
        }
        return Modules(files, self._loaded, self._guides)

    def forget(self) -> None:
        """Drop all of it."""
        self._model = self._pipeline = None
        self._loaded.clear()
        self._guides.clear()
        self._stamps.clear()


def _stamp(source: str, files: Files) -> object:
    """Something that changes when local weights do."""
    if not source.startswith("file:"):
        return None
    path = files.weights(source)
    if path.is_file():
        return _file_stamp(path)
    found = sorted(entry for entry in path.rglob("*") if entry.is_file())[:MOST_FILES]
    return tuple(_file_stamp(entry) for entry in found)


def _file_stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
