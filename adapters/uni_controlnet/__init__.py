"""Uni-ControlNet: one adapter for many maps at once, and one for a content image.

Zhao et al. (2023), arXiv:2305.16322. ``local.py`` is the network for maps, ``tokens.py`` the one for content,
``model.py`` both together, ``config.py`` their description, ``checkpoint.py`` the weight files they are read
from, ``reading.py`` and ``control.py`` what they are bound to, and do with it during a run.
"""

from __future__ import annotations

from controlkit.adapters.uni_controlnet.config import LocalConfig, TokensConfig
from controlkit.adapters.uni_controlnet.model import UniControlNet

__all__ = ["LocalConfig", "TokensConfig", "UniControlNet"]
