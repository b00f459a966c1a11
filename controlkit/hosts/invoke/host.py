"""InvokeAI's public interface for nodes, untyped: it is imported when it runs, and is no dependency."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def api() -> Any:
    """The module ``invokeai.invocation_api``; nothing else of InvokeAI is used."""
    return import_module("invokeai.invocation_api")
