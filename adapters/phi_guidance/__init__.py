"""Guidance by a function phi(x_t, y, t): its gradient shifts the predicted noise.

It has no weights and lives in the core, in `controlkit.guidance`; this is its place among the adapters.
"""

from __future__ import annotations

from controlkit.guidance import Guidance

__all__ = ["Guidance"]
