"""Reading and writing weights: what a checkpoint is, and a module from it.

``sources`` finds the files, ``sniff`` tells their format, ``safetensors`` and ``pickles`` read them,
``formats`` tells the layout, an adapter's ``checkpoint.py`` plans the module, ``load`` puts it together.
"""

from __future__ import annotations

from controlkit.checkpoints.info import CheckpointInfo, inspect
from controlkit.checkpoints.load import load

__all__ = ["CheckpointInfo", "inspect", "load"]
