"""T2I-Adapter: a small network that reads a control map once and adds to the U-Net's encoder.

Mou et al. (2023), arXiv:2302.08453. ``model.py`` is the network, ``checkpoint.py`` the weight files it is
read from, ``control.py`` what it does during a run.
"""

from __future__ import annotations

from controlkit.adapters.t2i_adapter.model import T2IAdapter, T2IAdapterConfig

__all__ = ["T2IAdapter", "T2IAdapterConfig"]
