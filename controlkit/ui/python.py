"""A recipe as the few lines of Python that make the same picture, to the bit."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import Any

from controlkit.errors import RecipeError
from controlkit.recipes import Recipe

FOLDER = "inputs"
"""Where the pictures that the code reads lie, beside the pictures that were made."""

WIDTH = 110


def as_python(recipe: Recipe, *, models: Path | None = None) -> tuple[str, dict[str, bytes]]:
    """The code of a recipe, and the files that it reads.

    Args:
        recipe: Complete in itself: its pictures are data.
        models: Folder of local weights, named where the recipe has ``file:`` sources.

    Returns:
        Code to be run in the folder that holds ``inputs``; name to content of the pictures in there.

    Raises:
        RecipeError: A picture of the recipe is a path.
    """
    files: dict[str, bytes] = {}
    values = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"made_with", "recipe"})
    given = _with_files(values, files)
    lines = ["import controlkit as ck", "", f"recipe = ck.Recipe.load({_literal(given, 0)})"]
    local = '"file:' in recipe.to_json() and models is not None
    many = recipe.images > 1
    extra = f", models={str(models)!r}" if local else ""
    if many:
        lines += [f"for number, picture in enumerate(ck.run(recipe{extra})):"]
        lines += ['    picture.save(f"again-{number}.png")']
    else:
        lines += [f"picture = ck.run(recipe{extra})[0]", 'picture.save("again.png")']
    return "\n".join(lines) + "\n", files


class _Code(str):
    """Code that stands in place of a value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _with_files(value: Any, files: dict[str, bytes]) -> Any:
    """The value with pictures that are data as calls of `controlkit.open_image`."""
    if isinstance(value, list | tuple):
        return [_with_files(entry, files) for entry in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("data"), str) and set(value) <= {"data", "digest"}:
        try:
            content = base64.b64decode(value["data"], validate=True)
        except binascii.Error as error:
            raise RecipeError("image data", found=f"broken base64 ({error})", expected="a picture") from None
        name = f"{hashlib.sha256(content).hexdigest()[:12]}.png"
        files[name] = content
        return _Code(f'ck.open_image("{FOLDER}/{name}")')
    if isinstance(value.get("path"), str) and set(value) <= {"path", "digest"}:
        raise RecipeError(
            "image",
            found="a picture by its path",
            expected="data",
            fix="Make the picture, and use its recipe.",
        )
    if set(value) == {"source"}:
        return value["source"]
    return {key: _with_files(entry, files) for key, entry in value.items()}


def _literal(value: Any, indent: int) -> str:
    """A value as Python, over several lines where it does not fit in one."""
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # its escapes are Python's too
    if not isinstance(value, dict | list | tuple):
        return repr(value)
    inner = " " * (indent + 4)
    pairs = isinstance(value, dict)
    parts = (
        [f"{json.dumps(key)}: {_literal(entry, indent + 4)}" for key, entry in value.items()]
        if pairs
        else [_literal(entry, indent + 4) for entry in value]
    )
    left, right = "{}" if pairs else "[]"
    short = left + ", ".join(parts) + right
    if len(short) + indent <= WIDTH - 20 and "\n" not in short:
        return short
    return left + "\n" + "".join(f"{inner}{part},\n" for part in parts) + " " * indent + right
