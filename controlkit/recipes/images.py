"""Pictures inside recipes: as data, or as a path beside the recipe; and the one place that opens them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from PIL import Image, ImageOps, PngImagePlugin
from pydantic import BeforeValidator, Field, model_validator

from controlkit.errors import ParameterError, RecipeError
from controlkit.images import as_picture, as_saved, open_image
from controlkit.recipes.rules import Digest, Plain, Text

MAX_DATA = 48_000_000
"""Most base64 characters of one picture: Pillow reads at most 64 MB of text from a PNG."""

_EXACT_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16")


class Picture(Plain):
    """A picture in a recipe: ``data`` or ``path``.

    Args:
        data: A PNG, JPEG or WebP file as base64.
        path: A file, relative to the folder of the recipe, with ``/`` between names.
        digest: SHA-256 of the file at ``path``; another file is refused.
    """

    data: (
        Annotated[str, Field(strict=True, max_length=MAX_DATA, pattern=r"^[A-Za-z0-9+/]+={0,2}$")] | None
    ) = None
    path: Text | None = None
    digest: Digest | None = None

    @model_validator(mode="after")
    def _check(self) -> Picture:
        if (self.data is None) == (self.path is None):
            raise RecipeError(
                "image",
                found="both data and a path" if self.data else "neither data nor a path",
                expected="one of them",
                fix='Write {"path": "map.png"} for a file beside the recipe.',
            )
        if self.path is not None:
            check_relative(self.path, "path")
        return self


def as_reference(value: object) -> object:
    """A reference as it is, a path as a reference, and a picture itself as embedded data."""
    if value is None or isinstance(value, (Picture, Mapping)):
        return value
    if isinstance(value, (str, Path)):
        return {"path": value.as_posix() if isinstance(value, Path) else value}
    return {"data": encode(value)}


AnyPicture = Annotated[Picture, BeforeValidator(as_reference)]
"""A reference, a path or a picture itself."""


def encode(image: Any) -> str:
    """A picture as base64 PNG: its pixels, hidden ones marked, and nothing else (no EXIF, no comments).

    Args:
        image: PIL, numpy or torch, as the ``image`` of ``module.on``, one picture. Floats become 8 bits a
            channel.

    Raises:
        HintError: It is not a picture.
        ParameterError: Too large to be carried in a recipe.
    """
    text = PngImagePlugin.PngInfo()
    if isinstance(image, Image.Image):
        upright, hole = as_saved(ImageOps.exif_transpose(image) or image)
        for keyword, value in hole.items():
            text.add_itxt(keyword, value)
        keep = upright.mode in _EXACT_MODES and "transparency" not in upright.info
        picture = upright.copy() if keep else as_picture(upright)
    else:
        picture = as_picture(image)
    picture.info = {}
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    if len(data) > MAX_DATA:
        raise ParameterError(
            "image",
            found=f"{picture.width} x {picture.height} pixels, {len(data) / 1e6:.0f} MB as data",
            expected=f"at most {MAX_DATA / 1e6:.0f} MB",
            fix="Shrink it to about the size of the output, or save it beside the recipe and give its path.",
        )
    return data


def check_relative(path: str, what: str) -> str:
    """``path``, when it can only lie below the folder that it is relative to.

    Raises:
        ParameterError: Absolute, with ``..``, a drive, a backslash, a control character, or an address.
    """
    windows = PureWindowsPath(path)
    problem = ""
    if not path or len(path) > 1024 or not path.isprintable():
        problem = "an empty, overlong or unprintable path"
    elif "://" in path:
        problem = "an address"
    elif path.startswith(("/", "~")) or windows.drive or windows.root or "\\" in path:
        problem = "an absolute path"
    elif ".." in PurePosixPath(path).parts:
        problem = "a path with .. in it"
    if problem:
        shown = path if len(path) <= 60 and path.isprintable() else "a path"
        raise ParameterError(
            what,
            found=f"{problem} ({shown!r})" if shown != "a path" else problem,
            expected="a path below the recipe's own folder, with / between names",
            fix="Put the file beside the recipe, or embed it.",
            code="CK-S14",
        )
    return path


@dataclass(frozen=True)
class Files:
    """Where the files that a recipe names are looked for; nothing outside is ever opened.

    Args:
        base: Folder of the recipe; None for one that came from no file.
        models: Folder of local weights, looked in first.
        known: Paths that the caller vouches for, by the recipe's word for them (``file:…``).
    """

    base: Path | None = None
    models: Path | None = None
    known: Mapping[str, Path] = field(default_factory=dict[str, Path])

    def picture(self, reference: Picture) -> Image.Image:
        """Open a picture.

        Raises:
            RecipeError: It is not there, or has another digest.
            HintError: It is not a picture that can be read.
        """
        if reference.data is not None:
            try:
                content = base64.b64decode(reference.data, validate=True)
            except binascii.Error as error:
                raise RecipeError(
                    "image data", found=f"broken base64 ({error})", expected="a PNG file"
                ) from None
            return open_image(io.BytesIO(content))
        assert reference.path is not None
        path = self._below(reference.path, "image", [self.base])
        if not path.is_file():
            raise _absent("image", reference.path)
        content = path.read_bytes()
        if reference.digest and hashlib.sha256(content).hexdigest() != reference.digest:
            raise RecipeError(
                reference.path,
                found="another file than the recipe was made with",
                expected=f"SHA-256 {reference.digest[:12]}…",
                fix="Restore the file, or remove the digest.",
            )
        return open_image(io.BytesIO(content))

    def weights(self, source: str) -> Path:
        """The file or folder of a ``file:`` source.

        Raises:
            RecipeError: It is not there.
        """
        if source in self.known:
            return self.known[source]
        relative = check_relative(source.removeprefix("file:"), "source")
        for folder in (self.models, self.base):
            if folder is not None:
                path = self._below(relative, "source", [folder])
                if path.exists():
                    return path
        raise _absent("source", relative)

    @staticmethod
    def _below(relative: str, what: str, folders: list[Path | None]) -> Path:
        folder = next((folder for folder in folders if folder is not None), None)
        if folder is None:
            raise RecipeError(
                what,
                found=f"the path {relative!r} in a recipe that came from no file",
                expected="a folder that it is relative to",
                fix="Load the recipe from its file, or embed the picture.",
            )
        root = folder.resolve()
        path = (root / check_relative(relative, what)).resolve()
        if not path.is_relative_to(root):
            raise RecipeError(
                what,
                found=f"{relative!r}, a link that leads out of its folder",
                expected="a file below the recipe's own folder",
                fix="Copy the file there.",
                code="CK-S14",
            )
        return path


def _absent(what: str, relative: str) -> RecipeError:
    return RecipeError(
        what,
        found=f"no file {relative!r} beside the recipe",
        expected="every file that the recipe names",
        fix="Put it there; for weights, name the folder they are in (--models, or models=).",
    )
