"""200 right maps and 200 wrong ones, of pictures that chose no threshold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from itertools import chain, cycle, islice

import numpy as np
from PIL import Image

from tests.maps.pictures import (
    HELD_OUT,
    maps_of,
    negative,
    normals,
    pose,
    recoloured,
    regions,
    scenes,
    squares,
)

Case = tuple[Image.Image, str, str]
"""A picture, the condition it is given to, and the fault ("" for none)."""

LINES = (("canny", "canny"), ("scribble", "scribble"), ("lineart", "lineart"), ("softedge", "sobel"))
FIRST_SCENE = 700


@cache
def photos() -> list[Image.Image]:
    return squares(HELD_OUT)


@cache
def held_out_scenes() -> list[object]:
    return scenes(FIRST_SCENE, 40)


def _drawn(photo: Image.Image, detector: str) -> Image.Image | None:
    """A detector's map; None where it found nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = maps_of(photo, detector)
    return made if np.asarray(made).any() else None


def _lines(sources: list[Image.Image]) -> Iterator[tuple[Image.Image, str]]:
    for photo, (condition, detector) in zip(sources, cycle(LINES), strict=False):
        if (made := _drawn(photo, detector)) is not None:
            yield made, condition


def _take(count: int, cases: Iterator[Case]) -> list[Case]:
    taken = list(islice(cases, count))
    assert len(taken) == count, f"{len(taken)} of {count}"
    return taken


@cache
def right() -> list[Case]:
    """200 maps, each with the condition it is right for."""
    views = held_out_scenes()
    pictures = [view.image for view in views]
    mixed = [*photos(), *pictures]
    shifted = mixed[1:] + mixed[:1]
    return [
        *_take(50, ((made, name, "") for made, name in chain(_lines(mixed), _lines(shifted)))),
        *_take(30, ((view.depth, "depth", "") for view in views)),
        *_take(20, ((normals(view.depth), "normal", "") for view in views)),
        *_take(20, ((view.seg, "seg", "") for view in views)),
        *_take(10, ((regions(photo, i, "ade20k"), "seg", "") for i, photo in enumerate(photos()))),
        *_take(10, ((regions(photo, i, "coco"), "seg", "") for i, photo in enumerate(photos()[10:]))),
        *_take(15, ((pose(3000 + i), "openpose", "") for i in range(15))),
        *_take(15, ((maps_of(photo, "color"), "color", "") for photo in mixed[::2])),
        *_take(10, ((maps_of(photo, "tile"), "tile", "") for photo in photos()[::2])),
        *_take(10, ((maps_of(photo, "shuffle"), "shuffle", "") for photo in photos()[1::2])),
        *_take(10, ((picture, "tile", "") for picture in pictures)),
    ]


@cache
def wrong() -> list[Case]:
    """200 pictures, each with a condition it is wrong for, and the fault."""
    views = held_out_scenes()
    pictures = [view.image for view in views]
    mixed = [*photos(), *pictures]
    wanted = cycle(("canny", "depth", "seg", "normal", "scribble", "openpose", "softedge", "color", "mlsd"))
    other: list[tuple[str, list[Image.Image]]] = [
        ("canny", [view.depth for view in views[:8]]),
        ("scribble", [normals(view.depth) for view in views[:8]]),
        ("lineart", [view.seg for view in views[:8]]),
        ("depth", [made for made, _ in islice(_lines(photos()), 12)]),
        ("depth", [normals(view.depth) for view in views[8:14]]),
        ("seg", [made for made, _ in islice(_lines(pictures), 6)]),
        ("normal", [view.depth for view in views[14:20]]),
        ("openpose", [view.seg for view in views[14:18]]),
        ("tile", [made for made, _ in islice(_lines(photos()[5:]), 6)]),
    ]
    return [
        *_take(60, ((p, name, "photograph") for p, name in zip(chain(mixed, mixed), wanted, strict=False))),
        *_take(40, ((negative(made), name, "inverted") for made, name in _lines(mixed))),
        *_take(30, ((negative(view.depth), "depth", "near dark") for view in views)),
        *_take(20, ((recoloured(view.seg, i), "seg", "palette") for i, view in enumerate(views))),
        *_take(6, ((recoloured(regions(p, i), i), "seg", "palette") for i, p in enumerate(photos()))),
        *_take(
            8,
            (
                (Image.new("RGB", (96, 64), (tone, tone, tone)), name, "blank")
                for tone in (0, 255)
                for name in ("canny", "depth", "seg", "tile")
            ),
        ),
        *_take(36, ((p, name, "another kind") for name, made in _interleaved(other) for p in [made])),
    ]


def _interleaved(groups: list[tuple[str, list[Image.Image]]]) -> Iterator[tuple[str, Image.Image]]:
    longest = max(len(made) for _, made in groups)
    for i in range(longest):
        yield from ((name, made[i]) for name, made in groups if i < len(made))
