"""IP-Adapter: a picture as a prompt, through a second cross-attention in every layer of the U-Net.

Ye et al. (2023), arXiv:2308.06721. ``model.py`` is the network, ``config.py`` its description,
``checkpoint.py`` the weight files it is read from, ``images.py`` the pictures that it is bound to,
``control.py`` what it does during a run.
"""

from __future__ import annotations

from controlkit.adapters.ip_adapter.config import IPAdapterConfig
from controlkit.adapters.ip_adapter.model import IPAdapter

__all__ = ["IPAdapter", "IPAdapterConfig"]
