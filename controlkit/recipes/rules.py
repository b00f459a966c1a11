"""The base of the recipe's models: plain values, unknown keys refused, errors in sentences."""

from __future__ import annotations

import difflib
import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from controlkit.errors import ControlKitError, ParameterError, RecipeError
from controlkit.strength import LARGEST_SCALE, Strength

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Digest = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]
Options = dict[str, JsonValue]
_NAME = re.compile(r"[a-z_]+(\[\d+\])?([.][a-z_]+)*")

MAX_SIDE = 8192
MAX_STEPS = 1000
MAX_IMAGES = 1000
MAX_SEED = 2**64 - 1


class Plain(BaseModel):
    """A frozen set of plain values.

    Raises:
        ParameterError: A value out of its range.
        RecipeError: An unknown key, a missing one, or a value of the wrong kind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as problem:
            raise in_words(problem, type(self)) from None


def in_words(problem: ValidationError, model: type[BaseModel]) -> ControlKitError:
    """The first thing that pydantic found wrong, as an error of ours; the others are counted."""
    errors = problem.errors(include_url=False)
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    place = _place(first["loc"]) or model.__name__.lower()
    more = f" ({len(errors) - 1} more like this)" if len(errors) > 1 else ""
    if isinstance(cause, ControlKitError):
        return _placed(cause, _place(first["loc"]))
    if first["type"] == "extra_forbidden":
        return RecipeError(
            place,
            found="a key that no recipe has" + more,
            expected="a known key",
            fix=_near(first["loc"], model),
        )
    if first["type"] == "missing":
        return RecipeError(place, found="nothing" + more, expected="a value")
    message = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    message = _WORDS.get(first["type"], message)
    found = _shown(first["input"]) + more
    if first["type"] in ("tuple_type", "model_type", "model_attributes_type") or place == "recipe":
        return RecipeError(place, found=found, expected=message)
    return ParameterError(place, found=found, expected=message, code=_CODES.get(place, "CK-P3"))


_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


_CODES = {"steps": "CK-P8", "guidance_scale": "CK-P9", "seed": "CK-P11", "images": "CK-P12"}
_CODES |= {"width": "CK-P2", "height": "CK-P2"}


def _placed(cause: ControlKitError, place: str) -> ControlKitError:
    """The same error, with its place in the recipe before the name of the argument."""
    if not place or place.endswith(cause.what):
        return cause
    joint = "." if _NAME.fullmatch(cause.what) else ": "
    return type(cause)(
        f"{place}{joint}{cause.what}",
        found=cause.found,
        expected=cause.expected,
        fix=cause.fix,
        code=cause.code,
    )


def _place(location: tuple[int | str, ...]) -> str:
    """``("controls", 0, "scale")`` as ``controls[0].scale``; the names of union members are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and not part[0].isupper():
            text += f".{part}" if text else part
    return text


def _near(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = {name for kind in (model, *Plain.__subclasses__()) for name in kind.model_fields}
    near = difflib.get_close_matches(str(location[-1]), sorted(known), n=1)
    return f"Did you mean {near[0]}?" if near else "Remove it."


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def in_range(name: str, value: int, low: int, high: int, fix: str, code: str) -> int:
    """``value``, when it lies between ``low`` and ``high``.

    Raises:
        ParameterError: It does not.
    """
    if not low <= value <= high:
        raise ParameterError(
            name, found=str(value), expected=f"a whole number from {low} to {high}", fix=fix, code=code
        )
    return value


def check_side(name: str, value: int) -> int:
    """``value``, when it is a size in pixels that a picture can have.

    Raises:
        ParameterError: Not a multiple of 8, or out of range; the nearest sizes are named.
    """
    in_range(name, value, 8, MAX_SIDE, "Sizes are in pixels, in steps of 8.", "CK-P2")
    if value % 8:
        below, above = value // 8 * 8, value // 8 * 8 + 8
        raise ParameterError(
            name,
            found=str(value),
            expected="a multiple of 8",
            fix=f"The nearest sizes are {below} and {above}.",
            code="CK-P1",
        )
    return value


def _check_scale(value: object, largest: float = LARGEST_SCALE) -> object:
    if callable(value):
        raise ParameterError(
            "scale",
            found="a function",
            expected="a number, or (fraction, scale) points: a recipe is plain data",
            fix="Give points such as [[0, 1.0], [0.5, 0.2]]; they are interpolated linearly.",
        )
    return Strength(scale=value, largest=largest).scale  # pyright: ignore[reportArgumentType]


Scale = Annotated[float | tuple[tuple[float, float], ...], BeforeValidator(lambda v: _check_scale(v))]
"""A number or ``(fraction, scale)`` points; `controlkit.strength.Strength` has the rules."""

AnyScale = Annotated[
    float | tuple[tuple[float, float], ...], BeforeValidator(lambda v: _check_scale(v, math.inf))
]
"""The same without a largest number: the scale of a guidance depends on its function."""
