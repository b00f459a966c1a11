"""T2I-Adapter: a small network that reads a control map once and adds to the U-Net's encoder.

Mou et al. (2023), arXiv:2302.08453. ``config.py`` says what can be built, ``model.py`` is the network,
``checkpoint.py`` and ``original.py`` are the weight files it is read from, ``control.py`` is what it does
during a run.
"""

from __future__ import annotations

from controlkit.adapters.t2i_adapter.config import T2IAdapterConfig
from controlkit.adapters.t2i_adapter.model import T2IAdapter

__all__ = ["T2IAdapter", "T2IAdapterConfig"]
