"""What is ours on a ComfyUI MODEL: the keys it is under, and how the report finds it."""

from __future__ import annotations

import itertools
from typing import Any, Protocol, runtime_checkable

from controlkit.report import ControlRecord

_PREFIX = "controlkit"
_numbers = itertools.count()


@runtime_checkable
class Attached(Protocol):
    """A control or a guidance function on a MODEL; its record is of the last sampling."""

    record: ControlRecord


def own_key() -> str:
    """A key for wrappers, models and attachments that nothing else has, so that others on the MODEL stay."""
    return f"{_PREFIX}_{next(_numbers)}"


def attached(patcher: Any) -> list[Attached]:
    """What is ours on a MODEL, in the order it was added; nothing for None."""
    found: dict[str, Any] = getattr(patcher, "attachments", {})
    return [one for key, one in found.items() if key.startswith(f"{_PREFIX}_") and isinstance(one, Attached)]
