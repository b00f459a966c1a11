"""How a config.json becomes a frozen dataclass, and back: data only, every key accounted for.

Nothing in a config is looked up, imported or fetched. A key is a field of the dataclass, or known to say
nothing about the network, or known with the values that mean "not there"; anything else is refused,
because it may change what the network computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from controlkit.errors import ConfigError, ConfigMismatch, Unsupported

_T = TypeVar("_T")

LIMIT = 1 << 16
"""Largest width or count that a config may hold; the widest published network has 2816."""

_USE_ITS_OWN = "Use the config.json that came with the weights, or give the right value with config=."


@dataclass(frozen=True)
class Keys:
    """What a config of one class may hold beside the fields of its dataclass.

    Args:
        classes: Names that ``_class_name`` may have.
        neutral: Keys of features that are not implemented, with the values that switch them off.
        unused: Keys that say nothing about this network.
    """

    classes: tuple[str, ...]
    neutral: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    unused: frozenset[str] = frozenset()


def parse(cls: type[_T], values: Mapping[str, Any], keys: Keys, what: str = "config") -> _T:
    """Build a config dataclass from the entries of a config.json.

    Args:
        cls: The dataclass.
        values: The entries; keys that start with an underscore are remarks and are not read, except
            ``_class_name``.
        keys: What else may be there.
        what: The file, for errors.

    Raises:
        ConfigMismatch: It describes another class.
        Unsupported: It switches on a feature that is not implemented.
        ConfigError: A key is not known, or a value cannot be built.
    """
    named = values.get("_class_name")
    if named is not None and named not in keys.classes:
        raise ConfigMismatch(
            f"{what}: _class_name",
            found=f"{named!r:.80}",
            expected=" or ".join(keys.classes),
            fix="Use the config.json that came with these weights; their names tell what they are.",
        )
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key in known:
            given[key] = value
        elif key in keys.neutral:
            if _frozen(value) not in keys.neutral[key]:
                raise Unsupported(
                    f"{what}: {key}",
                    found=repr(value),
                    expected=" or ".join(map(repr, keys.neutral[key])),
                    fix="This variant is not implemented, so it is refused and not loaded wrongly.",
                )
        elif not key.startswith("_") and key not in keys.unused:
            raise ConfigError(
                f"{what}: {key}",
                found=f"the key, with the value {value!r:.60}",
                expected="only keys that are known",
                fix="If it does not change the network, remove it from config.json.",
            )
    return cls(**given)


def as_dict(config: Any, class_name: str) -> dict[str, Any]:
    """The entries of a config.json that diffusers and `parse` read back as ``config``."""
    entries: dict[str, Any] = {"_class_name": class_name, "_diffusers_version": "0.31.0"}
    for item in fields(config):
        value = getattr(config, item.name)
        entries[item.name] = list(value) if isinstance(value, tuple) else value
    return entries


def validate(config: Any, *, zero: tuple[str, ...] = ()) -> None:
    """Check every field's type and range, and make its lists tuples; for ``__post_init__``.

    Args:
        config: A frozen dataclass whose fields are numbers, strings, flags and tuples of them.
        zero: Fields that may be 0; any other number must be positive.

    Raises:
        ConfigError: Naming the field.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        value = _frozen(getattr(config, item.name))
        object.__setattr__(config, item.name, value)
        if not _matches(value, hints[item.name]):
            expected = str(item.type).replace("tuple", "list").replace(", ...", "")
            raise ConfigError(
                f"config {item.name}", found=f"{value!r:.80}", expected=expected, fix=_USE_ITS_OWN
            )
        least = 0 if item.name in zero else 1
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            too_small = number < least if isinstance(number, int) else number <= 0
            if too_small or number > LIMIT:
                raise ConfigError(
                    f"config {item.name}",
                    found=f"{number:.6g}" if isinstance(number, float) else str(number)[:40],
                    expected=f"a number from {least} to {LIMIT}",
                    fix=_USE_ITS_OWN,
                )
        if isinstance(value, tuple) and not 0 < len(value) <= 64:
            raise ConfigError(
                f"config {item.name}", found=f"{len(value)} entries", expected="1 to 64", fix=_USE_ITS_OWN
            )


def changed(config: Any) -> dict[str, Any]:
    """The fields that differ from their defaults: a short description."""
    return {
        item.name: getattr(config, item.name)
        for item in fields(config)
        if item.default is MISSING or getattr(config, item.name) != item.default
    }


def _frozen(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list | tuple) and depth < 4:
        return tuple(_frozen(part, depth + 1) for part in value)
    return value


def _matches(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, part) for part in get_args(hint))
    if origin is Literal:
        return any(value is part or (isinstance(value, str) and value == part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(part, get_args(hint)[0]) for part in value)
    if hint is NoneType:
        return value is None
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (isinstance(value, int) or math.isfinite(value))
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
