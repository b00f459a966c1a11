"""What each condition's maps may look like, and what to do where they do not."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.maps.kinds import Kind

_PICTURES: frozenset[Kind] = frozenset(
    (
        "photograph",
        "gray photograph",
        "depth",
        "grid",
        "blended labels",
        "other labels",
        "inverted",
        "two tones",
    )
)


@dataclass(frozen=True)
class Condition:
    """A condition.

    Args:
        title: What its maps are, in words.
        accepts: What they may look like.
        fix: How to get one from a photograph.
    """

    title: str
    accepts: frozenset[Kind]
    fix: str


def _lines(title: str, detector: str) -> Condition:
    return Condition(
        f"{title}, white on black",
        frozenset(("lines", "two tones")),
        f'Pass the photo with detect="{detector}".',
    )


_PHOTO = "Pass the photograph itself."
CONDITIONS: dict[str, Condition] = {
    "canny": _lines("edges", "canny"),
    "scribble": _lines("strokes", "scribble"),
    "lineart": _lines("line art", "lineart"),
    "softedge": _lines("soft edges", "sobel"),
    "sketch": _lines("strokes", "scribble"),
    "mlsd": _lines("straight lines", "lines"),
    "depth": Condition(
        "a depth map, near is bright", frozenset(("depth",)), 'Pass the photo with detect="depth".'
    ),
    "normal": Condition("a normal map", frozenset(("normal",)), 'Pass the photo with detect="normal".'),
    "seg": Condition(
        "a label map in the palette's colours",
        frozenset(("labels", "blended labels")),
        "Make one with a segmentation network that writes ADE20K or COCO colours.",
    ),
    "openpose": Condition(
        "a coloured skeleton on black", frozenset(("pose",)), "Make one with a pose network such as OpenPose."
    ),
    "color": Condition(
        "squares of mean colour",
        frozenset(("grid", "labels", "blended labels", "other labels")),
        'Pass the photo with detect="color".',
    ),
    "tile": Condition("a picture", _PICTURES, _PHOTO),
    "blur": Condition("a blurred picture", _PICTURES, _PHOTO),
    "shuffle": Condition("a picture", _PICTURES, _PHOTO),
    "ip2p": Condition("a picture", _PICTURES, _PHOTO),
    "inpaint": Condition("a picture with a hidden part", _PICTURES, _PHOTO),
    "gray": Condition("a picture in gray", _PICTURES, _PHOTO),
}
"""The conditions that are known."""

_ALIASES = {
    "hed": "softedge", "pidi": "softedge", "ted": "softedge", "soft_edge": "softedge",
    "lines": "mlsd", "lineart_anime": "lineart", "anime_lineart": "lineart",
    "midas": "depth", "depth_midas": "depth", "normalbae": "normal", "normals": "normal",
    "segmentation": "seg", "segment": "seg", "pose": "openpose", "keypose": "openpose", "dwpose": "openpose",
    "repaint": "inpaint", "recolor": "gray", "colour": "color",
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Every name of a condition."""
    return (*CONDITIONS, *_ALIASES)


def condition_named(name: str) -> Condition | None:
    """The condition of a name, in any case; None where there is none."""
    return CONDITIONS.get(key_of(name))


def key_of(name: str) -> str:
    """The key in `CONDITIONS` that a name stands for, in any case; empty where there is none."""
    key = name.lower().replace("-", "_")
    key = _ALIASES.get(key, key)
    return key if key in CONDITIONS else ""
