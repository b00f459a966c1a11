"""The control modules: one folder per method, the same file names in each.

``model.py`` is the network in plain torch, ``checkpoint.py`` says which weight files it reads, and
``control.py`` is what it does during a run. Import this package as ``controlkit.adapters``: the top-level
folder is only where its source lies.
"""

from __future__ import annotations

from controlkit.adapters.coadapter import CoAdapterFuser, CoAdapterFuserConfig
from controlkit.adapters.controlnet import ControlNet, ControlNetConfig
from controlkit.adapters.controlnet_union import ControlNetUnion, ControlNetUnionConfig
from controlkit.adapters.ip_adapter import IPAdapter, IPAdapterConfig
from controlkit.adapters.noisy_classifier import NoisyClassifier
from controlkit.adapters.noisy_clip import NoisyClip, NoisyClipConfig
from controlkit.adapters.style_adapter import StyleAdapter, StyleAdapterConfig
from controlkit.adapters.t2i_adapter import T2IAdapter, T2IAdapterConfig
from controlkit.adapters.uni_controlnet import UniControlNet

__all__ = [
    "CoAdapterFuser",
    "CoAdapterFuserConfig",
    "ControlNet",
    "ControlNetConfig",
    "ControlNetUnion",
    "ControlNetUnionConfig",
    "IPAdapter",
    "IPAdapterConfig",
    "NoisyClassifier",
    "NoisyClip",
    "NoisyClipConfig",
    "StyleAdapter",
    "StyleAdapterConfig",
    "T2IAdapter",
    "T2IAdapterConfig",
    "UniControlNet",
]

if __name__ != "controlkit.adapters":
    raise ImportError(
        "import controlkit.adapters, not adapters: the top-level folder is only a source location"
    )
