"""The host's own modules, untyped: ComfyUI is imported when it runs, and is no dependency.

Nothing here is imported anywhere but inside ComfyUI (and by tests that put stand-ins in its place).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def host(name: str) -> Any:
    """A module of ComfyUI by its name, such as ``comfy.controlnet`` or ``folder_paths``."""
    return import_module(name)
