"""How a doubtful map is told where a control is bound: a note for the report, and a warning."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from controlkit.errors import MapDoubted
from controlkit.maps.checking import check_map
from controlkit.maps.conditions import condition_named

if TYPE_CHECKING:
    from torch import Tensor


def notice(rows: Tensor | list[Tensor], condition: str | None) -> tuple[str, ...]:
    """Check the map of a module that is being bound.

    Args:
        rows: (n, 3, H, W) in [0, 1], or a list of such; anything else is left unchecked.
        condition: What the module's maps show; None, or a name that is not known: nothing is checked.

    Returns:
        Nothing, or one note for the run's report.

    Warns:
        MapDoubted: The same, now.
    """
    if condition is None or condition_named(condition) is None:
        return ()
    if any(row.shape[-3] not in (1, 3) or row.is_meta for row in rows):
        return ()
    three = [row.reshape(-1, *row.shape[-3:]).expand(-1, 3, -1, -1) for row in rows]
    checks = [check_map(row.clamp(0, 1), condition) for row in three]
    worst = max(checks, key=lambda check: (not check.ok, check.sure))
    if worst.ok:
        return ()
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("controlkit."):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"the map for {condition} is doubtful: {worst}", MapDoubted, stacklevel=level)
    return (f"doubtful map: {worst}",)
