"""Can this be a map for that condition? The answer is never a refusal: it names the fault and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from controlkit.errors import HintError, ParameterError
from controlkit.maps.conditions import CONDITIONS, Condition, condition_named, names
from controlkit.maps.kinds import Kind, Likeness, likeness
from controlkit.maps.palettes import PALETTES

Fault = Literal["", "photograph", "inverted", "near dark", "palette", "blank", "another kind"]

_TITLES: dict[Kind, str] = {
    "blank": "one colour all over",
    "normal": "a normal map",
    "grid": "squares of colour",
    "labels": "a label map",
    "blended labels": "a label map, its colours blended",
    "other labels": "a label map in colours of its own",
    "pose": "a coloured skeleton on black",
    "photograph": "a photograph",
    "gray photograph": "a gray photograph",
    "lines": "lines, white on black",
    "inverted": "lines, black on white",
    "two tones": "areas of two tones",
    "depth": "a depth map",
    "small": "too small to tell",
}
_NEAR_DARK = -0.5
"""Bottom third less top third of a depth map, in standard deviations, under which near is taken for dark: the
ground before a camera is nearer than what is above it. Right maps chosen from have 1.6 to 2.3."""


@dataclass(frozen=True)
class MapCheck:
    """What `check_map` found.

    Args:
        condition: As it was named.
        fault: Empty where nothing is wrong; ``photograph`` (where a map belongs), ``inverted`` (black lines
            on white), ``near dark`` (an inverted depth map), ``palette`` (labels in other colours),
            ``blank``, ``another kind`` (a map, but of something else).
        looks_like: What the picture looks like, in words.
        sure: How sure that answer is, in [0.5, 1], to be read like a probability: 0.5 where the measurement
            that decided lies on its threshold, 1 where all are far from theirs. It is made from the
            distances to the thresholds, and is no measured frequency.
        message: One sentence; empty where nothing is wrong.
        fix: What to do; empty where nothing is wrong.
    """

    condition: str
    fault: Fault
    looks_like: str
    sure: float
    message: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it, as far as can be seen."""
        return not self.fault

    def __str__(self) -> str:
        if self.ok:
            return f"no fault seen: {self.looks_like}, for {self.condition}"
        return f"{self.message} ({self.sure:.0%} sure). {self.fix}"


def check_map(
    image: Any, condition: str, *, palette: str | Sequence[tuple[int, int, int]] | None = None
) -> MapCheck:
    """Say whether a picture can be a control map of a condition, and if not, what is wrong and what to do.

    Looks at a few statistics of a reduced copy, for some milliseconds; see docs/maps.md for each rule. A map
    that is of the right kind but of another picture is not noticed.

    Args:
        image: One picture, or a batch or list of one size or several, as `controlkit.images.as_map` reads it;
            of several the most doubtful is told.
        condition: ``canny``, ``scribble``, ``lineart``, ``softedge`` (``hed``), ``sketch``, ``mlsd``
            (``lines``), ``depth`` (``midas``), ``normal``, ``seg``, ``openpose``, ``color``; or one that
            reads pictures: ``tile``, ``blur``, ``shuffle``, ``ip2p``, ``inpaint``, ``gray``.
        palette: For label maps: ``ade20k``, ``coco``, ``embedded``, or colours (red, green, blue) in 0 to
            255. None: any of the three.

    Raises:
        HintError: It is no picture.
        ParameterError: No such condition or palette.

    Example:
        >>> import numpy
        >>> check_map(numpy.zeros((64, 64, 3), "uint8"), "canny").fault
        'blank'
    """
    from controlkit.images import as_map

    about = condition_named(condition) if isinstance(condition, str) else None
    if about is None:
        near = get_close_matches(str(condition).lower(), names(), n=2, cutoff=0.5)
        raise ParameterError(
            "condition",
            found=repr(condition)[:80],
            expected=", ".join(CONDITIONS),
            fix=f"Did you mean {' or '.join(near)}?" if near else "Leave maps of other conditions unchecked.",
        )
    palettes = _palettes(palette)
    rows = as_map(image, lowest=-1.0 if about is CONDITIONS["inpaint"] else 0.0, any_aspect=True, notes=[])
    checks = [
        _examine(pixels.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), condition, about, palettes)
        for row in rows
        for pixels in (row if row.ndim == 4 else row[None])
    ]
    if not checks:
        raise HintError("image", found="no picture", expected="one", code="CK-H20")
    return max(checks, key=lambda check: (not check.ok, check.sure))


def _palettes(palette: str | Sequence[tuple[int, int, int]] | None) -> dict[str, Any]:
    if palette is None:
        return dict(PALETTES)
    if isinstance(palette, str):
        if palette not in PALETTES:
            raise ParameterError(
                "palette",
                found=repr(palette)[:80],
                expected=f"{', '.join(PALETTES)}, or a list of (red, green, blue)",
            )
        return {palette: PALETTES[palette]}
    table = np.asarray(palette)
    if table.ndim != 2 or table.shape[1:] != (3,) or not len(table) or table.min() < 0 or table.max() > 255:
        raise ParameterError(
            "palette", found=f"shape {table.shape}", expected="(n, 3) colours with values from 0 to 255"
        )
    return {"given": palette}


def _examine(
    pixels: NDArray[np.float32], named: str, condition: Condition, palettes: dict[str, Any]
) -> MapCheck:
    seen = likeness(pixels, palettes)
    looks, sure = _TITLES[seen.kind], round(seen.sure, 3)
    fault, sure = _fault(seen, condition, sure)
    if not fault:
        return MapCheck(named, "", looks, sure)
    if fault == "near dark":
        looks = "a depth map in which near is dark"
    return MapCheck(
        named,
        fault,
        looks,
        sure,
        f"this looks like {looks}, but {named} needs {condition.title}",
        _fix(fault, condition),
    )


def _fault(seen: Likeness, condition: Condition, sure: float) -> tuple[Fault, float]:
    if seen.kind == "blank":
        return "blank", sure
    if seen.kind == "small":
        return "", sure
    if seen.kind in condition.accepts:
        rise = seen.statistics.rise
        if condition is CONDITIONS["depth"] and rise < _NEAR_DARK:
            return "near dark", min(sure, round(0.5 + 0.5 * min((_NEAR_DARK - rise) / 1.0, 1.0), 3))
        return "", sure
    if "photograph" in seen.kind:
        return "photograph", sure
    if seen.kind == "inverted" and "lines" in condition.accepts:
        return "inverted", sure
    if seen.kind in ("other labels", "grid") and condition is CONDITIONS["seg"]:
        return "palette", sure
    return "another kind", sure


def _fix(fault: Fault, condition: Condition) -> str:
    if fault in ("inverted", "near dark"):
        return 'Invert it: detect="invert", or 255 - map.'
    if fault == "palette":
        return "Paint it in the colours that the module was trained on (ADE20K or COCO for published ones)."
    if fault == "blank":
        return f"There is nothing in it to follow. {condition.fix}"
    return condition.fix
