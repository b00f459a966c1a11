"""Which picture each detector with weights has without them: what it is given, and what is true of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from controlkit.preprocessors import preprocess
from controlkit.preprocessors.auxiliary import Auxiliary, Kept
from controlkit.preprocessors.base import Detector
from controlkit.preprocessors.registry import BUILT_IN
from format_pictures import auxiliaries, person, poses, transforming
from format_pictures.still_life import SIDE, still_life

SHOWN = 256
"""Pixels of a picture's sides."""
DISTANCES, INVERSE = "the true distances", "the true inverse distances"
OUTLINES = "the true outlines"
LABELS = "the true regions, called floor, box, ball, column and tent,"
REGIONS = "the true regions"
JOINTS = "joints placed by eye"


@dataclass(frozen=True)
class Format:
    """One picture.

    Args:
        truth: What took the place of the network's answer.
        network: Makes what `Networked.network` gives, or what `Auxiliary.assemble` gives.
        person: Whether it is given the photograph, not the scene.
        options: Of the detector.
    """

    truth: str
    network: Callable[[], Any]
    person: bool = False
    options: dict[str, Any] = field(default_factory=dict)


FORMATS = {
    "hed": Format(OUTLINES, auxiliaries.hed),
    "pidinet": Format(OUTLINES, auxiliaries.pidinet),
    "teed": Format(OUTLINES, auxiliaries.teed),
    "anyline": Format(OUTLINES, auxiliaries.teed),
    "lineart-realistic": Format(OUTLINES, auxiliaries.lineart_realistic),
    "lineart-anime": Format(OUTLINES, auxiliaries.lineart_anime),
    "mlsd": Format("the true straight edges", auxiliaries.mlsd),
    "midas": Format(INVERSE, auxiliaries.midas),
    "leres": Format(DISTANCES, auxiliaries.leres),
    "zoe": Format(DISTANCES, auxiliaries.zoe),
    "normal-bae": Format("the true normals", auxiliaries.normal_bae),
    "openpose": Format(JOINTS, auxiliaries.openpose, person=True),
    "dwpose": Format(
        f"{JOINTS}, and MediaPipe's points of the face,",
        lambda: _dwpose(poses.coordinates(), poses.persons()),
        person=True,
    ),
    "sam": Format(REGIONS, auxiliaries.sam),
    "depth-anything": Format(INVERSE, transforming.depth_anything),
    "dpt": Format(INVERSE, transforming.dpt),
    "zoedepth": Format(DISTANCES, transforming.zoedepth),
    "segformer": Format(LABELS, transforming.segformer),
    "upernet": Format(LABELS, transforming.upernet),
    "mask2former": Format(LABELS, transforming.mask2former),
    "oneformer": Format(LABELS, transforming.oneformer),
    "sam2": Format(REGIONS, transforming.sam2),
    "vitpose": Format(JOINTS, transforming.vitpose, person=True, options={"people": ""}),
}
"""By detector."""


def _dwpose(coordinates: Any, persons: Any) -> Any:
    from controlkit.preprocessors.dwpose import Both

    return Both(coordinates, persons)


def scene() -> Image.Image:
    """The rendered scene, 256 x 256."""
    return Image.fromarray(still_life().image)


def photograph() -> Image.Image:
    """The photograph with a person, 512 x 512."""
    return Image.fromarray(data.astronaut())


def with_truth(name: str) -> Detector:
    """A detector whose network is replaced by what is true of its picture."""
    chosen = FORMATS[name]
    (kind,) = (kind for kind in BUILT_IN if kind.name == name)
    network = chosen.network()
    if issubclass(kind, Auxiliary):
        network = Kept(network, threading.Lock())
    changed: type[Any] = type(f"True{kind.__name__}", (kind,), {"network": lambda _: network})
    return changed(device="cpu", **chosen.options)


def map_of(name: str) -> Image.Image:
    """The map, as large as what it is made of: `scene` or `photograph`."""
    given = photograph() if FORMATS[name].person else scene()
    return preprocess(given, with_truth(name))


def small(image: Image.Image) -> Image.Image:
    """At 256 x 256, as it is shown; gray where it has no colours."""
    if image.size != (SHOWN, SHOWN):
        image = image.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    values = np.asarray(image.convert("RGB"))
    gray = (values == values[..., :1]).all()
    return Image.fromarray(np.ascontiguousarray(values[..., 0])) if gray else Image.fromarray(values)


assert person.SIDE == 2 * SHOWN
assert SIDE == SHOWN
