"""What requests of the HTTP API hold beside recipes; unknown keys and wrong types are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from controlkit.recipes import ControlRecipe, Picture, Recipe
from controlkit.recipes.rules import Options, Plain, Text, Whole
from controlkit.ui.sweep import Sweep


def _as_picture(value: object) -> object:
    """A plain string is the data itself; of ``data:`` addresses what follows the comma."""
    if isinstance(value, str):
        if value.startswith("data:"):
            value = value.partition(",")[2]
        return {"data": value}
    return value


Sent = Annotated[
    Picture,
    BeforeValidator(_as_picture),
    Field(description="base64 of a PNG, JPEG or WebP file, or an object with it as data"),
]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]


class Preprocess(Plain):
    """A photograph for a detector.

    Args:
        image: The photograph.
        detector: Its name.
        options: Of the detector.
        size: Of the map: width and height, or the shortest side; None: as the photograph.
        resolution: Shortest side at which the detector looks, or ``auto``.
    """

    image: Sent
    detector: Name
    options: Options = Field(default_factory=dict)
    size: tuple[Whole, Whole] | Whole | None = None
    resolution: Whole | Literal["auto"] | None = None


class Preview(Plain):
    """A control whose map is to be seen.

    Args:
        control: As in a recipe.
        width: Of the run, in pixels.
        height: Of the run, in pixels.
    """

    control: ControlRecipe
    width: Whole = 512
    height: Whole = 512


class Grid(Plain):
    """A grid of scale by seed.

    Args:
        recipe: What its pictures share.
        sweep: The control, its scales and the seeds.
    """

    recipe: Recipe
    sweep: Sweep


class Inspect(Plain):
    """Weights to be looked at.

    Args:
        source: ``embedded:NAME``, ``hub:OWNER/NAME``, ``file:PATH`` or ``plugin:NAME``.
    """

    source: Name


class Check(Plain):
    """A map to be checked.

    Args:
        image: The map.
        condition: What it is for, such as ``canny``.
        palette: For label maps.
    """

    image: Sent
    condition: Name
    palette: Text | None = None


class Read(Plain):
    """A picture whose recipe is wanted.

    Args:
        image: A PNG that controlkit saved, as base64.
    """

    image: Sent


def schema(body: type[Plain]) -> dict[str, Any]:
    """The ``requestBody`` of OpenAPI for a body."""
    found = body.model_json_schema() if body is not Recipe else Recipe.model_json_schema()
    return {"required": True, "content": {"application/json": {"schema": _inlined(found)}}}


def _inlined(found: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions put in place, so that it stands for itself."""
    definitions = found.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            name = value["$ref"].rsplit("/", 1)[-1]
            if name == "JsonValue":
                return {}
            return {**put(definitions[name]), **{k: put(v) for k, v in value.items() if k != "$ref"}}
        return {key: put(entry) for key, entry in value.items() if key != "discriminator"}

    return put(found)
