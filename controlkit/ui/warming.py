"""Importing what is heavy, once and by one thread: the page is served before, and needs none of it."""

from __future__ import annotations

import threading
from importlib import import_module

HEAVY = ("torch", "controlkit.images", "controlkit.binding", "controlkit.checkpoints", "controlkit.attaching")
"""In this order: what the first preview needs, then the first picture."""

_ONE = threading.Lock()


def imported() -> None:
    """Import it, or wait until another thread has: threads that import one circle of modules from two ends
    can find each other's half done."""
    with _ONE:
        for name in HEAVY:
            import_module(name)
