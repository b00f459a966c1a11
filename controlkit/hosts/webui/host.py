"""The web UI's own modules, untyped: it is imported when it runs, and is no dependency."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def host(name: str) -> Any:
    """A module of the web UI by its name, such as ``modules.shared``."""
    return import_module(name)
