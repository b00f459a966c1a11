"""T2I-Adapter's style adapter: tokens made from a picture, put after the prompt's.

Mou et al. (2023), arXiv:2302.08453. ``config.py`` says what can be built, ``model.py`` is the network,
``checkpoint.py`` the weight files it is read from, ``control.py`` what it does during a run.
"""

from __future__ import annotations

from controlkit.adapters.style_adapter.config import StyleAdapterConfig
from controlkit.adapters.style_adapter.model import StyleAdapter

__all__ = ["StyleAdapter", "StyleAdapterConfig"]
