"""Reading and writing weights: what a checkpoint is, and a module from it.

``sources`` finds the files, ``sniff`` tells their format, ``safetensors`` and ``pickles`` read them,
``formats`` tells the layout, an adapter's ``checkpoint.py`` plans the module, ``load`` puts it together;
``unet`` does the same for diffusers' U-Net.
"""

from __future__ import annotations

from controlkit.checkpoints.info import CheckpointInfo, inspect
from controlkit.checkpoints.load import load
from controlkit.checkpoints.unet import unet

__all__ = ["CheckpointInfo", "inspect", "load", "unet"]
