"""Guidance by a function phi(x_t, y, t): its gradient shifts the predicted noise."""

from __future__ import annotations

from controlkit.adapters.phi_guidance.control import Guidance

__all__ = ["Guidance"]
