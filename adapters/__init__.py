"""The control modules: one folder per method, the same file names in each.

``model.py`` is the network in plain torch, ``checkpoint.py`` says which weight files it reads, and
``control.py`` is what it does during a run. Import this package as ``controlkit.adapters``: the top-level
folder is only where its source lies.
"""

from __future__ import annotations

from controlkit.adapters.controlnet import ControlNet, ControlNetConfig
from controlkit.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig

__all__ = ["ControlNet", "ControlNetConfig", "T2IAdapter", "T2IAdapterConfig"]

if __name__ != "controlkit.adapters":
    raise ImportError(
        "import controlkit.adapters, not adapters: the top-level folder is only a source location"
    )
