"""The one resolver: which files the server may touch, whatever a client names.

Pictures are written to, and read from, one output folder; weights are read from one folder of models;
presets and inputs lie in folders of their own in the output folder; what is uploaded to the page lies in a
temporary folder until it goes. Nothing else is opened because a client said so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlkit.errors import ParameterError, RecipeError
from controlkit.recipes import ControlRecipe, Files, GuidanceRecipe, Picture, Recipe
from controlkit.recipes.guides import BUILT_IN
from controlkit.recipes.images import check_relative
from controlkit.ui.errors import Refused

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,80}(?:\.[A-Za-z0-9]{1,8})?")
_PRESET = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,60}")
_FIXED = ("weights", "encoder", "revision", "local_files_only", "processor", "model", "network")
_PATHLIKE = re.compile(r"[/\\~\x00-\x1f]|\.\.|://|^[A-Za-z]:")
_WINDOWS = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True)
class Places:
    """Where the server reads and writes.

    Args:
        output: Folder of pictures; made when the first is written.
        models: Folder of local weights, or None.
    """

    output: Path
    models: Path | None = None

    @property
    def files(self) -> Files:
        """The resolver of recipes: weights below ``models``, and no pictures by path."""
        return Files(None, self.models)

    @property
    def presets(self) -> Path:
        """Folder of presets."""
        return self.output / "presets"

    @property
    def inputs(self) -> Path:
        """Folder of the photographs and maps that copied code reads."""
        return self.output / "inputs"

    def result(self, name: str) -> Path:
        """A picture in the output folder, by its name.

        Raises:
            Refused: Not the name of a file in that folder (400), or there is none (404).
        """
        return self._inside(self.output, name, ".png")

    def pictures(self, most: int = 60) -> list[Path]:
        """The newest pictures in the output folder, the newest first; at most ``most``."""
        if not self.output.is_dir():
            return []
        found = [
            (path.stat().st_mtime_ns, path.name, path)
            for path in self.output.iterdir()
            if path.suffix == ".png"
            and _NAME.fullmatch(path.name)
            and path.is_file()
            and not path.is_symlink()
        ]
        return [path for _, _, path in sorted(found, reverse=True)[:most]]

    def preset(self, name: str) -> Path:
        """Where a preset of this name is, or would be.

        Raises:
            Refused: Not a name.
        """
        if not _PRESET.fullmatch(name) or _WINDOWS.fullmatch(name):
            raise Refused(
                "preset",
                found=repr(name)[:80],
                expected="up to 60 letters, digits, spaces, - and _",
                code="CK-S14",
            )
        return self._below(self.presets, f"{name}.json")

    def _inside(self, folder: Path, name: str, suffix: str) -> Path:
        if not _NAME.fullmatch(name) or not name.endswith(suffix) or _WINDOWS.fullmatch(name):
            raise Refused(
                "name",
                found=repr(name)[:80],
                expected=f"the name of a file in the output folder that ends in {suffix}",
                code="CK-S14",
            )
        path = self._below(folder, name)
        if not path.is_file():
            raise Refused("name", found=f"no {name!r} in the output folder", expected="a picture", status=404)
        return path

    @staticmethod
    def _below(folder: Path, name: str) -> Path:
        root = folder.resolve()
        path = (root / name).resolve()
        if path.parent != root:
            raise Refused(
                "name",
                found=f"{name!r}, a link that leads out of its folder",
                expected="a file in it",
                code="CK-S14",
            )
        return path

    def vetted(self, recipe: Recipe) -> Recipe:
        """The recipe, when nothing in it leads to a file outside these places.

        Its modules and models go through `Files` when they are loaded. What is checked here is what does not:
        paths inside a source, and options that some kinds read as the place of another network.

        Raises:
            ParameterError: A path, or an option that only the machine's owner may set.
            RecipeError: A picture by its path: what comes over HTTP has no folder to be relative to.
        """
        if recipe.init is not None:
            _no_picture_paths({"image": recipe.init.image, "mask": recipe.init.mask}, "init")
        for number, part in enumerate(recipe.controls):
            place = f"controls[{number}]"
            pictures = {"image": part.image, "mask": part.mask}
            option = part.options.get("mask") if isinstance(part, GuidanceRecipe) else None
            _no_picture_paths(pictures, place, option)
            if isinstance(part, ControlRecipe):
                for name in ("subfolder", "weight_name"):
                    if (value := getattr(part.module, name)) is not None:
                        check_relative(value, f"{place}.module.{name}")
                plain_options(part.detect_options or {}, f"{place}.detect_options")
                plain_options(part.options, f"{place}.options")
            elif part.guidance not in BUILT_IN:
                plain_options(part.options, f"{place}.options")
        return recipe


def uploaded(path: object) -> bool:
    """Whether a path that a client names is that of a file that was uploaded to the page.

    Args:
        path: What stands in its message.
    """
    folder = os.environ.get("GRADIO_TEMP_DIR", "")
    if not folder or not isinstance(path, str) or "\0" in path:
        return False
    try:
        found = Path(path).resolve()
    except (OSError, ValueError, RuntimeError):
        return False
    return found.is_relative_to(Path(folder).resolve())


def _no_picture_paths(pictures: Mapping[str, Picture | None], place: str, option: Any = None) -> None:
    by_path = [name for name, picture in pictures.items() if picture is not None and picture.path is not None]
    if isinstance(option, Mapping) and option.get("path") is not None:
        by_path.append("options.mask")
    if by_path:
        raise RecipeError(
            f"{place}.{by_path[0]}",
            found="a path",
            expected="the picture itself, as data",
            fix='Embed it: {"data": "<base64 of the PNG, JPEG or WebP file>"}.',
            code="CK-S14",
        )


def plain_options(options: Mapping[str, Any], place: str, depth: int = 0) -> None:
    """Refuse options that name a file, a folder or a repository.

    Raises:
        ParameterError: One does.
    """
    for name, value in options.items():
        where = f"{place}.{name}"[:120]
        if name in _FIXED:
            raise ParameterError(
                where,
                found=f"the option {name!r} over HTTP",
                expected="it left out: it names weights on this machine",
                fix="Use Python or the command line for weights of your own.",
                code="CK-S14",
            )
        for text in _texts(value):
            if len(text) > 2000 or _PATHLIKE.search(text):
                raise ParameterError(
                    where,
                    found=f"{text!r:.60}, which reads as a path",
                    expected="a plain value",
                    code="CK-S14",
                )
        if isinstance(value, Mapping) and depth < 8:
            plain_options(value, where, depth + 1)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [text for entry in value for text in _texts(entry)]
    return []
