"""CLIP's image encoder, taught to read noisy pictures: guidance by a text or by a reference picture.

Liu et al. (2021), arXiv:2112.05744 (semantic diffusion guidance, SDG). ``config.py`` says what can be built,
``model.py`` is the network, ``checkpoint.py`` the weight files, ``control.py`` what it does during a run.
"""

from __future__ import annotations

from controlkit.adapters.noisy_clip.config import NoisyClipConfig
from controlkit.adapters.noisy_clip.model import NoisyClip

__all__ = ["NoisyClip", "NoisyClipConfig"]
