"""Detectors: turn a photograph into a control map.

`preprocess` runs one by name, `detectors` lists them with their options. One file per detector; `base` says
what a detector is, `registry` which there are, `preprocessing` how one is run. Import this package as
``controlkit.preprocessors``: the top-level folder is only where its source lies.
"""

if __name__ != "controlkit.preprocessors":
    raise ImportError(
        "import controlkit.preprocessors, not preprocessors: the top-level folder is only a source location"
    )

from controlkit.preprocessors.base import Detector, DetectorInfo, OptionInfo, Pixels, option
from controlkit.preprocessors.inpaint import marked
from controlkit.preprocessors.networks import free, held, keep
from controlkit.preprocessors.preprocessing import preprocess
from controlkit.preprocessors.registry import build, detectors
from controlkit.preprocessors.sizes import TRAINED

__all__ = [
    "TRAINED",
    "Detector",
    "DetectorInfo",
    "OptionInfo",
    "Pixels",
    "build",
    "detectors",
    "free",
    "held",
    "keep",
    "marked",
    "option",
    "preprocess",
]
