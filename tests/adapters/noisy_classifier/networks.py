"""Tiny random networks of guided-diffusion's two kinds, in every way they can be built."""

from __future__ import annotations

from typing import Any

from controlkit.adapters.noisy_classifier import ClassifierConfig, NoisyClassifier, PixelUNet, PixelUNetConfig
from tests import tiny

SHAPES: dict[str, dict[str, Any]] = {
    "two levels": {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)},
    "half first": {"channel_mult": (0.5, 1, 1), "num_res_blocks": 2, "attention_resolutions": (1, 4)},
    "no attention": {"channel_mult": (1, 1, 2), "num_res_blocks": 1, "attention_resolutions": None},
}
WAYS: dict[str, dict[str, Any]] = {
    "published": {"use_scale_shift_norm": True, "resblock_updown": True},
    "plain": {"use_new_attention_order": True},
    "averaged": {"conv_resample": False, "use_scale_shift_norm": True},
}
_COMMON: dict[str, Any] = {
    "image_size": 16,
    "model_channels": 64,
    "num_head_channels": 16,
    "conv_resample": True,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
}


def settings(shape: str, way: str, **more: Any) -> dict[str, Any]:
    return {**_COMMON, **SHAPES[shape], **WAYS[way], **more}


def classifier(shape: str = "two levels", way: str = "published", **more: Any) -> NoisyClassifier:
    """Seven classes, pictures of 16x16."""
    config = ClassifierConfig(**settings(shape, way, out_channels=7, **more))
    net = tiny.randomize(NoisyClassifier(config), 50)
    assert isinstance(net, NoisyClassifier)
    return net


def unet(shape: str = "two levels", way: str = "published", **more: Any) -> PixelUNet:
    """Noise and variances of three channels; five classes unless told otherwise."""
    config = PixelUNetConfig(**settings(shape, way, **{"out_channels": 6, "num_classes": 5, **more}))
    net = tiny.randomize(PixelUNet(config), 51)
    assert isinstance(net, PixelUNet)
    return net
