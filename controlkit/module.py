"""The base of everything `controlkit.load` returns: a network that can be bound to a map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

if TYPE_CHECKING:
    from controlkit.contracts import Control


class ControlModule(nn.Module, ABC):
    """Weights of one control. Loaded once, holds no image, is not changed by use.

    Attributes:
        kind: What it is: ``controlnet``, ``t2i-adapter``, …
        source: Where the weights came from (hub id, path, or ``state dict``), for reports and recipes.
        digest: SHA-256 of the weight file, or None when they did not come from a file.
        condition: What its maps show (``canny``, ``depth``, …) where that is known, for reports.
        notes: What was unusual about the weights, such as tensors that were not used.
    """

    kind: ClassVar[str]
    source: str = ""
    digest: str | None = None
    condition: str | None = None
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def base(self) -> str:
        """The base model it was made for: ``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``."""

    @abstractmethod
    def on(self, *args: Any, **kwargs: Any) -> Control:
        """Bind to a map, a strength and a schedule; each kind names its own arguments."""

    @abstractmethod
    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``diffusion_pytorch_model.safetensors`` in diffusers layout."""
