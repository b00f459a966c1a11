"""What a detector is: a frozen dataclass whose fields are its options, and one method.

    @dataclass(frozen=True)
    class Posterize(Detector):
        name = "posterize"
        family = "color"
        meaning = "the picture in few tones"
        levels: int = option(4, low=2, high=64, unit="tones", meaning="tones per channel")

        def detect(self, photo):
            step = 256 // self.levels
            return photo // step * step

Third parties register such a class under its name in the entry-point group ``controlkit.detectors``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from controlkit.errors import ParameterError
from controlkit.preprocessors.regions import Region

Pixels: TypeAlias = NDArray[np.uint8]
"""A photograph, (height, width, 3) RGB in 0..255; or a map, which may also be (height, width)."""

Value: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class OptionInfo:
    """One option of a detector.

    Args:
        name: The keyword.
        default: Its value when it is not given; its type is the option's. None: a picture, such as a mask,
            as `controlkit.images.as_mask` reads it, or None.
        meaning: What it does.
        low: Smallest value, inclusive; None where it is not a number.
        high: Largest value, inclusive.
        step: Distance between values from ``low`` on, where not every value will do.
        unit: Of the number, such as ``pixels``.
        choices: The possible values, where they are few.
        at_most: Another option that this one must not exceed.
    """

    name: str
    default: Value
    meaning: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    unit: str = ""
    choices: tuple[Value, ...] = ()
    at_most: str = ""


@dataclass(frozen=True)
class DetectorInfo:
    """What there is to know about a detector without running it.

    Args:
        name: What `preprocess` and ``detect=`` call it.
        family: The kind of control that reads its maps, such as ``canny`` or ``lineart``.
        needs_weights: Whether it runs a network whose weights must be present.
        extra: What must be installed for it beyond torch, numpy and pillow, as ``pip install`` takes it;
            empty when nothing.
        options: Its options with defaults and ranges.
        meaning: What the map shows, and its polarity.
        owner: The distribution that provides it.
    """

    name: str
    family: str
    needs_weights: bool
    extra: str
    options: tuple[OptionInfo, ...]
    meaning: str
    owner: str = "controlkit"


def option(
    default: Value,
    *,
    meaning: str,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    unit: str = "",
    choices: tuple[Value, ...] = (),
    at_most: str = "",
) -> Any:
    """Declare an option of a detector; the arguments are those of `OptionInfo`."""
    about = OptionInfo("", default, meaning, low, high, step, unit, choices, at_most)
    return field(default=default, metadata={"option": about})


class Detector(ABC):
    """Base of all detectors: a frozen dataclass with options as fields, checked when it is made.

    Attributes:
        name: What users call it.
        family: The kind of control that reads its maps.
        meaning: What the map shows, and its polarity.
        needs_weights: Whether it needs a network's weights.
        extra: What ``pip install`` needs for it, empty when nothing.
        marks: Whether the map is marks on black, so that an all-black map means that nothing was found.
        hides: Whether the map has a fourth channel, 255 where a pixel is hidden, as inpainting has it.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    meaning: ClassVar[str]
    needs_weights: ClassVar[bool] = False
    extra: ClassVar[str] = ""
    marks: ClassVar[bool] = False
    hides: ClassVar[bool] = False

    def __post_init__(self) -> None:
        known = {about.name: about for about in options_of(type(self))}
        for name, about in known.items():
            object.__setattr__(self, name, _checked(self.name, about, getattr(self, name)))
        for name, about in known.items():
            value, limit = getattr(self, name), getattr(self, about.at_most or name)
            if about.at_most and value > limit:
                raise ParameterError(
                    f"{self.name}: {name}",
                    found=f"{value:g}, above {about.at_most} = {limit:g}",
                    expected=f"{name} <= {about.at_most}",
                    fix="Exchange them.",
                )

    @abstractmethod
    def detect(self, photo: Pixels) -> Pixels:
        """Make the map of one photograph.

        Args:
            photo: (height, width, 3) RGB, at least 1 x 1. Must not be changed.

        Returns:
            (height, width) or (height, width, 3) of the same height and width, (height, width, 4) from one
            that ``hides``. The same photograph gives the same map, always.
        """

    def detect_many(self, photos: list[Pixels]) -> list[Pixels]:
        """Make the maps of photographs of one size; a network does it in one pass.

        Args:
            photos: Each (height, width, 3), all of one size.

        Returns:
            A map for each, as `detect` makes it.
        """
        return [self.detect(photo) for photo in photos]


def options_of(kind: type[Detector]) -> tuple[OptionInfo, ...]:
    """The options of a detector, in the order of its fields."""
    declared: tuple[Field[Any], ...] = fields(kind)  # pyright: ignore[reportArgumentType]
    return tuple(_named(entry) for entry in declared)


def info_of(kind: type[Detector], owner: str = "controlkit") -> DetectorInfo:
    """Describe a detector."""
    return DetectorInfo(
        kind.name, kind.family, kind.needs_weights, kind.extra, options_of(kind), kind.meaning, owner
    )


def with_options(kind: type[Detector], options: dict[str, Any]) -> Detector:
    """Make a detector with the given options.

    Raises:
        ParameterError: An option that it does not have (with near names), or a value out of range.
    """
    known = [about.name for about in options_of(kind)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=2, cutoff=0.5)
            near = near or [option for option in known if name in option]
            raise ParameterError(
                f"{kind.name}: option {name!r}",
                found="no such option",
                expected=", ".join(known) if known else "no options",
                fix=f"Did you mean {' or '.join(near)}?" if near else "",
            )
    return kind(**options)


def _named(entry: Field[Any]) -> OptionInfo:
    about: OptionInfo | None = entry.metadata.get("option")
    if about is None:
        raise TypeError(f"the field {entry.name} must be declared with option(...)")
    return replace(about, name=entry.name)


def _checked(owner: str, about: OptionInfo, value: Any) -> Value:
    """The value as the option's own type."""
    if about.default is None:
        return None if value is None else Region.read(value, f"{owner}: {about.name}")
    kind = type(about.default)
    if kind is bool and isinstance(value, (bool, np.bool_)):
        return bool(value)
    number = float(value) if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) else None
    if kind is int and number is not None and number.is_integer():
        value = int(number)
    elif kind is float and number is not None:
        value = number
    elif kind is not str or not isinstance(value, str):
        raise _wrong(owner, about, value)
    if about.choices:
        if value not in about.choices:
            raise _wrong(owner, about, value)
        return value
    if isinstance(value, str):
        return value
    low, high = (
        (-math.inf if about.low is None else about.low),
        (math.inf if about.high is None else about.high),
    )
    if not low <= value <= high or (about.step and (value - low) % about.step):
        raise _wrong(owner, about, value)
    return value


def _wrong(owner: str, about: OptionInfo, value: Any) -> ParameterError:
    expected = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[
        type(about.default)
    ]
    if about.choices:
        expected = "one of " + ", ".join(map(repr, about.choices))
    elif about.low is not None and about.high is not None:
        expected += f" from {about.low:g} to {about.high:g}{' ' + about.unit if about.unit else ''}"
        expected += f" in steps of {about.step:g}" if about.step else ""
    near = get_close_matches(value, map(str, about.choices), n=1) if isinstance(value, str) else []
    fix = f"Did you mean {near[0]!r}?" if near else f"The default is {about.default!r}."
    return ParameterError(f"{owner}: {about.name}", found=repr(value)[:80], expected=expected, fix=fix)
