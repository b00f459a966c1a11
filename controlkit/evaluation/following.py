"""How well does a picture follow the map that a control read? Any picture, any detector; higher is better.

The control's own detector looks at the picture that was made, and its map is compared with the one that the
module saw. Where the map was given, a detector of its kind that needs no weights looks instead. What cannot
be measured so is said, with the reason, and never guessed.

- *edges* (every kind of lines): F1 of the pixels over half of the brightest, with a tolerance of 2 pixels, or
  of 1/128 of the shorter side where that is more (`adherence.f1_of_edges`).
- *depth*: Pearson's correlation, after the plane that fits best was taken from each: in most pictures the
  lower part is nearer, which would make unrelated ones agree.
- *labels*: mean intersection over union of the map's colours, the background left out.
- *normals*: Pearson's correlation of red and green, the directions across the picture.
- *colours*: Pearson's correlation of all channels.

A score compares pictures made with the same map. It says nothing about beauty, and a detector's own errors
are in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from controlkit.errors import ControlKitError
from controlkit.evaluation.adherence import f1_of_edges

if TYPE_CHECKING:
    from PIL import Image

LEAST = 0.005
"""Share of the map that a colour must cover to be compared as a label."""

_MEASURES = {
    **dict.fromkeys(
        ("canny", "scribble", "lineart", "lineart_anime", "softedge", "mlsd", "openpose", "face", "sketch"),
        "edges",
    ),
    "depth": "depth",
    "seg": "labels",
    "mask": "labels",
    "normal": "normals",
    **dict.fromkeys(("color", "tile", "blur", "recolor", "gray"), "colours"),
}
_UNITS = {"edges": "F1", "depth": "r", "labels": "IoU", "normals": "r", "colours": "r"}
_GIVEN = {
    "canny": "canny", "scribble": "scribble", "sketch": "scribble", "lineart": "lineart",
    "softedge": "sobel", "mlsd": "lines", "color": "color", "gray": "recolor",
}  # fmt: skip
_EMBEDDED = {"depth": "embedded-depth", "seg": "embedded-segmentation"}
_CONVERTS = {"invert": "lineart", "threshold": "scribble", "depth": "depth", "normal": "normal"}
"""Detectors that are no measure: two convert drawings, two guess, so that unrelated pictures look alike."""

_NEVER = {
    "shuffle": "its maps keep colours, not places",
    "inpaint": "its map is the picture around the hidden part",
    "regions": "the colours of its regions mean nothing by themselves",
    "ip2p": "it follows words, not a map",
    "tile": "a picture was given, not its map",
    "blur": "how much the map is blurred is not known",
}

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How well a picture follows one map.

    Args:
        measure: ``edges``, ``depth``, ``labels``, ``normals`` or ``colours``; empty where there is none.
        value: In [0, 1], correlations in [-1, 1]; None: not measured.
        by: The detector that looked at the picture.
        why: Why it was not measured.
    """

    measure: str
    value: float | None
    by: str = ""
    why: str = ""

    def __str__(self) -> str:
        """In a few words, such as ``edges 0.83 (F1, by canny)``."""
        if self.value is None:
            return f"not measured: {self.why}"
        return f"{self.measure} {self.value:.2f} ({_UNITS[self.measure]}, by {self.by})"


def follow(
    picture: Image.Image,
    wanted: Image.Image,
    *,
    detect: str | None = None,
    options: Mapping[str, Any] | None = None,
    condition: str = "",
    base: str = "",
    region: NDArray[np.bool_] | None = None,
) -> Score:
    """Compare a picture with the map that a module saw.

    Args:
        picture: What was made.
        wanted: The map, of the same size.
        detect: The detector that made the map; None: the map was given.
        options: Of that detector.
        condition: What the module's maps show, such as ``canny``, where no detector tells.
        base: ``embedded``, ``sd1``, …: what the module was trained for.
        region: (height, width), True where the control acts; None: everywhere.

    Returns:
        The score; with ``value`` None and a reason where there is none.

    Raises:
        ValueError: The sizes differ.
    """
    if picture.size != wanted.size:
        raise ValueError(f"wanted is {wanted.size}, the picture {picture.size}; resize one of them")
    name, family, why = _looks(detect, condition, base)
    measure = _MEASURES.get(family, "")
    if not name:
        return Score(measure, None, why=why)
    if region is not None and not region.any():
        return Score(measure, None, why="its region is empty")
    try:
        found = _look(picture, name, options if name == detect else None, base)
    except (ControlKitError, ImportError) as error:
        return Score(measure, None, why=f"{name} cannot look at the picture ({error})"[:300])
    value, why = _compared(measure, found, _array(wanted), region, own=name == detect)
    return Score(measure, value, name, why)


def _looks(detect: str | None, condition: str, base: str) -> tuple[str, str, str]:
    """The detector that looks at the picture, the kind of its maps, and why there is none."""
    from controlkit.maps.conditions import key_of
    from controlkit.preprocessors import detectors

    known = {info.name: info for info in detectors()}
    if detect is not None and detect not in _CONVERTS:
        family = known[detect].family if detect in known else ""
        if family in _MEASURES:
            return detect, family, ""
        return "", family, _NEVER.get(family, f"no measure for maps of {detect}")
    family = _CONVERTS[detect] if detect else key_of(condition) or condition
    name = _GIVEN.get(family, "") or (_EMBEDDED.get(family, "") if base == "embedded" else "")
    if name:
        return name, family, ""
    if not family:
        return "", "", "what the module's maps show is not known"
    return "", family, _NEVER.get(family, f"no detector without weights measures {family}")


def _look(picture: Image.Image, name: str, options: Mapping[str, Any] | None, base: str) -> Values:
    from controlkit.preprocessors import TRAINED, preprocess

    given = {key: value for key, value in (options or {}).items() if key not in ("size", "any_aspect")}
    if given.get("resolution") == "auto":
        given["resolution"] = TRAINED.get(base, "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _array(preprocess(picture, name, any_aspect=True, **given))


def _array(picture: Image.Image) -> Values:
    return np.asarray(picture.convert("RGB"), np.float64)


def _compared(
    measure: str, found: Values, wanted: Values, region: NDArray[np.bool_] | None, *, own: bool
) -> tuple[float | None, str]:
    """The value, and why there is none."""
    where = np.ones(found.shape[:2], bool) if region is None else region
    if measure == "edges":
        lines, asked = found.max(axis=2), wanted.max(axis=2)
        level = max(16.0, asked.max() / 2)
        least = level if own else max(16.0, lines.max() / 2)
        tolerance = max(2.0, min(lines.shape) / 128)
        return f1_of_edges(lines > least, asked > level, tolerance, where), ""
    if measure == "depth":
        a, b = _without_plane(found.mean(axis=2), where), _without_plane(wanted.mean(axis=2), where)
        return _correlation(a, b)
    if measure == "labels":
        return _labels(found, wanted, where)
    if measure == "normals":
        return _correlation(found[where][:, :2].ravel(), wanted[where][:, :2].ravel())
    return _correlation(found[where].ravel(), wanted[where].ravel())


def _without_plane(depth: Values, where: NDArray[np.bool_]) -> Values:
    """The depth there, less the plane over the picture that fits it best."""
    rows, columns = np.nonzero(where)
    plane = np.stack([rows, columns, np.ones(len(rows))], axis=1).astype(np.float64)
    values = depth[where]
    factors, *_ = np.linalg.lstsq(plane, values, rcond=None)
    return values - plane @ factors


def _correlation(a: Values, b: Values) -> tuple[float | None, str]:
    if b.std() < 0.5:
        return None, "the map is flat where the control acts"
    return (0.0 if a.std() < 1e-6 else float(np.corrcoef(a, b)[0, 1])), ""


def _labels(found: Values, wanted: Values, where: NDArray[np.bool_]) -> tuple[float | None, str]:
    from controlkit.embedded import PALETTE

    codes = np.array([65536, 256, 1])
    seen, asked = (values[where].astype(np.int64) @ codes for values in (found, wanted))
    labels, counts = np.unique(asked, return_counts=True)
    background = {0, int(np.asarray(PALETTE[0]) @ codes)}
    labels = [int(x) for x in labels[counts >= LEAST * len(asked)] if int(x) not in background]
    if not labels:
        return None, "the map has no label but the background where the control acts"
    shares = [((seen == x) & (asked == x)).sum() / ((seen == x) | (asked == x)).sum() for x in labels]
    return float(np.mean(shares)), ""
