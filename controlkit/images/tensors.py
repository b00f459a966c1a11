"""Telling tensors without importing torch: where it was not imported, nothing can be one."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard


def is_tensor(value: Any) -> TypeGuard[Any]:
    """Whether something is a `torch.Tensor`."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
