"""ControlNet: a trainable copy of the U-Net's encoder that reads a control map.

Zhang et al. (2023), arXiv:2302.05543. ``model.py`` is the network, ``config.py`` its description,
``checkpoint.py`` the weight files it is read from, ``original.py`` those of the first implementation,
``control.py`` what it does during a run. ``relative.py``, ``relative_model.py`` and ``relative_control.py``
are the same for ControlNets that are stored relative to a base model.
"""

from __future__ import annotations

from controlkit.adapters.controlnet.config import ControlNetConfig
from controlkit.adapters.controlnet.model import ControlNet
from controlkit.adapters.controlnet.relative_model import ControlLora, ControlNetDifference

__all__ = ["ControlLora", "ControlNet", "ControlNetConfig", "ControlNetDifference"]
