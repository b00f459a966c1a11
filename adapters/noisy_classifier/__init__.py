"""Noisy classifiers, and the pixel U-Nets they were made to guide, as in guided-diffusion.

Dhariwal & Nichol (2021), arXiv:2105.05233. ``config.py`` says what can be built and ``infer.py`` what shapes
tell of it, ``blocks.py`` are the layers, ``model.py`` the classifier, ``unet.py`` the U-Net,
``checkpoint.py`` the classifier's weight files, ``control.py`` what it does during a run.
"""

from __future__ import annotations

from controlkit.adapters.noisy_classifier.config import ClassifierConfig, PixelUNetConfig
from controlkit.adapters.noisy_classifier.model import NoisyClassifier
from controlkit.adapters.noisy_classifier.unet import PixelUNet, load_pixel_unet

__all__ = ["ClassifierConfig", "NoisyClassifier", "PixelUNet", "PixelUNetConfig", "load_pixel_unet"]
