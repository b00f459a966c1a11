"""Kinds of control from other packages: the entry-point group ``controlkit.controls``.

An entry names something that, called without arguments, gives an object with ``on(image, **binding)``, which
returns a `controlkit.Control`. Such a kind is used by its name, as ``plugin:NAME`` in recipes and on the
command line. CONTRIBUTING.md has a worked example.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from controlkit.errors import ParameterError

GROUP = "controlkit.controls"


def kinds() -> dict[str, str]:
    """Name of each kind from another package, and the package that brings it; imports none of them."""
    return {entry.name: _owner(entry) for entry in sorted(_entries(), key=lambda entry: entry.name)}


def module(name: str) -> Any:
    """The module of a kind from another package: an object with ``on(image, **binding)``.

    Raises:
        ParameterError: No such kind, two packages that bring it, or a package that cannot be imported.
    """
    found = [entry for entry in _entries() if entry.name == name]
    if not found:
        known = kinds()
        near = difflib.get_close_matches(name, known, n=1)
        raise ParameterError(
            "plug-in",
            found=repr(name),
            expected=f"one of {', '.join(known)}" if known else f"a package that registers it under {GROUP}",
            fix=f"Did you mean {near[0]}?" if near else "",
        )
    if len(found) > 1:
        owners = " and ".join(sorted(_owner(entry) for entry in found))
        raise ParameterError(
            f"plug-in {name!r}",
            found=f"provided by {owners}",
            expected="one owner",
            fix="Uninstall one of them.",
        )
    try:
        made = found[0].load()()
    except Exception as error:
        raise ParameterError(
            f"plug-in {name!r}",
            found=f"{_owner(found[0])} cannot be used ({error})",
            expected="a package that works",
            fix="Reinstall that package, or remove it.",
        ) from error
    if not callable(getattr(made, "on", None)):
        raise ParameterError(
            f"plug-in {name!r}",
            found=f"a {type(made).__name__} without on()",
            expected="an object with on(image, **binding)",
            fix=f"This is a fault of {_owner(found[0])}.",
        )
    return made


def _entries() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
