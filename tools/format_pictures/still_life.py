"""The scene that the pictures of maps show: four solids on a floor, and what is exactly true of each pixel.

Cast by the renderer of the embedded world, a second copy of it: the world's own pictures have 128 pixels.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlkit.embedded import render
from controlkit.embedded.world import Solid, World

SIDE = 256
"""Pixels."""
FINE = 4
"""Rays along each side of a pixel, where outlines are sought."""
LINE = 1.5
"""Width of an outline in pixels."""
WORLD = World(
    solids=(
        Solid("cube", "blue", False, -1.05, -0.55, 0.64, math.radians(35)),
        Solid("sphere", "red", True, 0.32, -1.45, 0.54, 0.0),
        Solid("cylinder", "green", False, 0.26, 1.75, 0.74, 0.0),
        Solid("cone", "yellow", False, 1.66, 0.62, 0.68, 0.0),
    ),
    relation="",
    floor="sand",
    light=-1.1,
)
KINDS = ("floor", *(solid.kind for solid in WORLD.solids))
"""What the numbers of `StillLife.things` mean."""

Floats = NDArray[np.float32]
Segment = tuple[float, float, float, float]


@dataclass(frozen=True)
class StillLife:
    """The scene, and the truth about it.

    Attributes:
        image: (256, 256, 3) uint8 RGB.
        things: (256, 256): 0 is the floor, i the i-th solid.
        parts: (256, 256): as ``things``, each side of the cube and the lid with its own number.
        distance: (256, 256): from the camera's plane, in world units.
        normal: (256, 256, 3): unit normals towards the camera's left, its up, and the camera.
        outline: (256, 256) in [0, 1]: how much of a pixel lies on the border of two parts.
        segments: The straight borders in pixels: x and y of one end, x and y of the other.
    """

    image: NDArray[np.uint8]
    things: NDArray[np.uint8]
    parts: NDArray[np.int16]
    distance: Floats
    normal: Floats
    outline: Floats
    segments: list[Segment]


@cache
def still_life() -> StillLife:
    """The scene, cast once."""
    caster = _caster(SIDE)
    parts, distance, normal = _cast(SIDE)
    return StillLife(
        image=caster.render(WORLD).image,
        things=(parts // 8).astype(np.uint8),
        parts=parts,
        distance=distance,
        normal=normal @ _axes(caster).T,
        outline=_outline(),
        segments=[_seen(caster, *ends) for solid in WORLD.solids for ends in _edges(solid, caster)],
    )


@cache
def _caster(side: int) -> Any:
    """A copy of the renderer for pictures of this many pixels."""
    name = f"_controlkit_render_{side}"
    spec = importlib.util.spec_from_file_location(name, render.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy  # dataclasses look for their module there
    spec.loader.exec_module(copy)
    copy.SIZE = side
    return copy


def _axes(caster: Any) -> Floats:
    """Rows: to the camera's left, its up, and towards it."""
    forward = caster._TARGET - caster._EYE
    forward = forward / np.linalg.norm(forward)
    return np.stack([[-1.0, 0.0, 0.0], np.cross(forward, [1.0, 0.0, 0.0]), -forward]).astype(np.float32)


def _cast(side: int) -> tuple[NDArray[np.int16], Floats, Floats]:
    """Number of the part, distance and normal, which is the world's, for each pixel."""
    caster = _caster(side)
    rays = caster._rays().reshape(-1, 3)
    distance = (-caster._EYE[1] / rays[:, 1]).astype(np.float32)
    parts = np.zeros(side * side, np.int16)
    normal = np.tile(np.array([0, 1, 0], np.float32), (side * side, 1))
    for number, solid in enumerate(WORLD.solids, 1):
        hits = caster._intersect(solid, caster._EYE, rays)
        nearer = hits.distance < distance
        distance[nearer], normal[nearer] = hits.distance[nearer], hits.normal[nearer]
        parts[nearer] = number * 8 + hits.face[nearer]
    return parts.reshape(side, side), distance.reshape(side, side), normal.reshape(side, side, 3)


def _outline() -> Floats:
    import cv2

    parts, _, _ = _cast(SIDE * FINE)
    border = np.zeros(parts.shape, np.uint8)
    border[1:] |= parts[1:] != parts[:-1]
    border[:, 1:] |= parts[:, 1:] != parts[:, :-1]
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(LINE * FINE), round(LINE * FINE)))
    drawn = cv2.dilate(border, pen).astype(np.float32)
    return drawn.reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))


def _edges(solid: Solid, caster: Any) -> list[tuple[Any, Any]]:
    """Ends, in the world, of a solid's straight borders as the camera sees them."""
    foot, radius = np.array([solid.x, 0.0, solid.z]), solid.radius
    eye = caster._EYE - foot
    if solid.kind == "cube":
        return [(foot + one, foot + other) for one, other in _cube(solid, eye)]
    if solid.kind == "sphere":
        return []
    away, towards = math.hypot(eye[0], eye[2]), math.atan2(eye[2], eye[0])
    tapered = solid.kind == "cone"
    slope = radius / solid.height * (eye[1] - solid.height) if tapered else -radius
    turn = math.acos(-slope / away)  # where the camera lies in the plane that touches the side
    edges: list[tuple[Any, Any]] = []
    for angle in (towards - turn, towards + turn):
        below = radius * np.array([math.cos(angle), 0.0, math.sin(angle)])
        above = np.zeros(3) if tapered else below
        edges.append((foot + below, foot + above + [0.0, solid.height, 0.0]))
    return edges


def _cube(solid: Solid, eye: Any) -> list[tuple[Any, Any]]:
    """The edges of the sides that the camera sees, from the middle of the cube's base."""
    half, yaw = solid.radius, solid.yaw
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    middle = np.array([0.0, half, 0.0])
    local = (eye - middle) @ turn
    corners = [np.array([i, j, k]) for i in (-half, half) for j in (-half, half) for k in (-half, half)]
    edges: list[tuple[Any, Any]] = []
    for i, one in enumerate(corners):
        for other in corners[i + 1 :]:
            same = np.flatnonzero(one == other)
            if len(same) == 2 and any(local[axis] * np.sign(one[axis]) > half for axis in same):
                edges.append((one @ turn.T + middle, other @ turn.T + middle))
    return edges


def _seen(caster: Any, one: Any, other: Any) -> Segment:
    """Two points of the world in pixels."""
    forward = caster._TARGET - caster._EYE
    forward = forward / np.linalg.norm(forward)
    up = np.cross(forward, [1.0, 0.0, 0.0])
    places: list[float] = []
    for point in (one, other):
        away = point - caster._EYE
        scale = away @ forward * caster._HALF
        places += [(away[0] / scale + 1) * SIDE / 2 - 0.5, (1 - away @ up / scale) * SIDE / 2 - 0.5]
    return float(places[0]), float(places[1]), float(places[2]), float(places[3])
