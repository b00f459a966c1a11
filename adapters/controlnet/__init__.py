"""ControlNet: a trainable copy of the U-Net's encoder that reads a control map.

Zhang et al. (2023), arXiv:2302.05543. ``model.py`` is the network, ``config.py`` its description,
``checkpoint.py`` the weight files it is read from, ``control.py`` what it does during a run.
"""

from __future__ import annotations

from controlkit.adapters.controlnet.config import ControlNetConfig
from controlkit.adapters.controlnet.model import ControlNet

__all__ = ["ControlNet", "ControlNetConfig"]
