"""What people write into a web UI's text fields: curves, numbers, options."""

from __future__ import annotations

from typing import Any

from controlkit.errors import ParameterError


def read_points(text: str) -> list[tuple[float, float]] | None:
    """A curve written as ``0: 1, 0.5: 0.2``: shares of the run and scales; None where there is none.

    Raises:
        ParameterError: Something else is written there.
    """
    parts = [part for part in text.replace(";", ",").replace("\n", ",").split(",") if part.strip()]
    points: list[tuple[float, float]] = []
    for part in parts:
        at, _, value = part.partition(":")
        points.append((_number("curve", at, part), _number("curve", value, part)))
    return points or None


def read_numbers(what: str, text: str) -> list[float] | None:
    """Numbers with commas between them; None where there are none.

    Raises:
        ParameterError: Something else is written there.
    """
    return [_number(what, part, part) for part in text.split(",") if part.strip()] or None


def read_options(text: str) -> dict[str, Any]:
    """Options written as ``low_threshold: 60, high_threshold: 140``.

    Raises:
        ParameterError: An entry without a name or a value.
    """
    options: dict[str, Any] = {}
    for part in [part for part in text.replace("\n", ",").split(",") if part.strip()]:
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        if not name or not colon or not value:
            raise ParameterError("options", found=repr(part.strip()), expected="name: value, name: value")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _number(what: str, text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        expected = "points such as 0: 1, 0.5: 0.2" if what == "curve" else "numbers with commas between"
        raise ParameterError(what, found=repr(whole.strip()), expected=expected) from None
