"""Reading recipes from JSON and pictures, and writing files so that nothing is lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from controlkit.errors import RecipeError, SaveError

if TYPE_CHECKING:
    from controlkit.recipes.model import Recipe

CHUNK = "controlkit"
"""Keyword of the PNG text chunk."""

MAX_JSON = 64_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


def read(source: Any) -> tuple[Any, Path | None]:
    """The values of a recipe, not yet checked, and the folder it came from.

    Raises:
        RecipeError: Unreadable, or no recipe in it.
    """
    from controlkit.recipes.model import Recipe

    if isinstance(source, Recipe):
        return source, source.base
    if isinstance(source, Mapping):
        return {str(key): value for key, value in source.items()}, None
    if isinstance(source, Image.Image):
        return parse(_chunk(source, "the picture"), "the picture"), None
    if isinstance(source, bytes | bytearray):
        return _content(bytes(source), "the recipe"), None
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return parse(source, "the recipe"), None
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            if path.is_file() and path.stat().st_size > 2 * MAX_JSON:
                raise _refuse(path.name, f"{path.stat().st_size / 1e6:.0f} MB", "a recipe or picture of less")
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise _refuse(str(source)[:200], reason.lower(), "a recipe file") from None
        return _content(content, path.name), path.parent
    raise _refuse("recipe", f"a {type(source).__name__}", "JSON text, a path, a dict or a picture")


def parse(text: str, what: str) -> dict[str, Any]:
    """A JSON object; duplicate keys, NaN and nesting without end are refused.

    Raises:
        RecipeError: It is not one.
    """
    if len(text) > MAX_JSON:
        raise _refuse(what, f"{len(text) / 1e6:.0f} MB of JSON", f"at most {MAX_JSON / 1e6:.0f} MB")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1} if len(keys) < 1000 else set(keys)
        if twice:
            raise _refuse(what, f"the key {min(twice)[:40]!r} more than once", "each key once")
        return dict(pairs)

    def constant(name: str) -> float:
        raise _refuse(what, name, "finite numbers")

    try:
        values = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise _refuse(what, "JSON nested without end", "a recipe") from None
    except ValueError as error:
        if isinstance(error, RecipeError):
            raise
        raise _refuse(what, f"no JSON ({error})"[:160], "a recipe in JSON") from None
    if not isinstance(values, dict):
        raise _refuse(what, f"a JSON {type(values).__name__}", "a JSON object")
    return values


def _content(content: bytes, what: str) -> dict[str, Any]:
    if content.startswith(_PNG):
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            return parse(_chunk(picture, what), what)
    try:
        return parse(content.decode("utf-8"), what)
    except UnicodeDecodeError:
        raise _refuse(
            what, "neither JSON nor a PNG", "a recipe, or a picture that controlkit saved"
        ) from None


def _chunk(picture: Image.Image, what: str) -> str:
    text = picture.info.get(CHUNK)
    if not isinstance(text, str):
        raise _refuse(
            what,
            "a picture without a recipe",
            "a PNG that controlkit saved",
            "Programs that edit or shrink pictures drop it; use the original file.",
        )
    return str(text)


def _refuse(what: str, found: str, expected: str, fix: str = "") -> RecipeError:
    return RecipeError(what, found=found, expected=expected, fix=fix)


def png_bytes(picture: Image.Image, recipe: Recipe | None, notes: Mapping[str, str] | None = None) -> bytes:
    """A PNG file, with the recipe in a text chunk before the pixels.

    Args:
        picture: The pixels.
        recipe: What made them.
        notes: Further text chunks, by keyword.
    """
    info = PngImagePlugin.PngInfo()
    for keyword, text in (notes or {}).items():
        info.add_itxt(keyword, text)
    if recipe is not None:
        info.add_itxt(CHUNK, recipe.to_json())
    clean = picture.copy()
    clean.info = {}
    buffer = io.BytesIO()
    clean.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def write(path: Path, content: bytes, *, force: bool = False, number: bool = False) -> Path:
    """Write a whole file or none: to a temporary file beside it, which is then renamed.

    Args:
        path: Where to.
        content: What.
        force: Replace a file that is there.
        number: Where a file is there, take the next free name: ``picture-2.png``, ``picture-3.png``, …

    Returns:
        The path that was written.

    Raises:
        SaveError: A file is there, or it cannot be written; what was there is intact.
    """
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return _place(temporary, path, force=force, number=number)
    except OSError as error:
        if isinstance(error, SaveError):
            raise
        reason = (error.strerror or str(error)).lower()
        raise SaveError(str(path), found=reason, expected="a folder that can be written to") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path, *, force: bool, number: bool) -> Path:
    """Give the finished file its name; `os.link` fails where the name is taken, without a race."""
    if force:
        os.replace(temporary, path)
        return path
    for count in range(1, 100_000):
        target = path if count == 1 else path.with_name(f"{path.stem}-{count}{path.suffix}")
        try:
            _link(temporary, target)
            return target
        except FileExistsError:
            if not number:
                break
    raise SaveError(
        str(path), found="a file of that name", expected="a free name", fix="Choose another, or use force."
    )


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: claim the name, then replace the empty claim
        target.open("xb").close()
        os.replace(temporary, target)
