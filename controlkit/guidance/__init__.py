"""Guidance: controls that are a function's gradient, with no weights inside the U-Net.

It is part of the core because modules of several kinds (noisy classifiers, noisy CLIP) give such controls.
"""

from __future__ import annotations

from controlkit.guidance.control import Guidance
from controlkit.guidance.likelihood import Likelihood

__all__ = ["Guidance", "Likelihood"]
