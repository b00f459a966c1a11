"""ControlNet-Union: one ControlNet for many types of maps, any of which may act together.

xinsir's ControlNet++ (xinsir6/ControlNetPlus@b4842057; Pro has 6 types, ProMax 8). ``model.py`` is the
network, ``config.py`` its description, ``types.py`` what its types are called, ``checkpoint.py`` the weight
files it is read from, ``control.py`` what it does during a run.
"""

from __future__ import annotations

from controlkit.adapters.controlnet_union.config import ControlNetUnionConfig
from controlkit.adapters.controlnet_union.model import ControlNetUnion, UnionHint

__all__ = ["ControlNetUnion", "ControlNetUnionConfig", "UnionHint"]
