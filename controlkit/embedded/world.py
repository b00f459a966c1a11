"""What exists in a scene, and the words for it.

A world is one to three solids on a floor, under one light. This file draws one at random and writes
its caption; `render.py` makes the picture and the exact maps. The world is its own mirror image: a
mirrored picture shows a valid world, whose caption `World.mirrored` gives.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

KINDS = ("sphere", "cube", "cylinder", "cone")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 44, 40),
    "orange": (246, 130, 24),
    "yellow": (248, 216, 36),
    "green": (36, 160, 64),
    "cyan": (48, 200, 214),
    "blue": (44, 96, 236),
    "purple": (152, 62, 206),
    "pink": (246, 128, 184),
}
FLOORS: dict[str, tuple[int, int, int]] = {
    "sand": (214, 188, 142),
    "slate": (34, 39, 48),
    "snow": (232, 236, 242),
}
RELATIONS = ("left of", "right of", "in front of", "behind")
FIRST_TRAINING_SEED = 1_000_000
"""Seeds below this are held out: no model has been trained on such a scene."""

_SHARES = (0.66, 0.26, 0.08)
_SIZES = {1: (0.82, 1.16), 2: (0.68, 0.92), 3: (0.54, 0.66)}
_PLACES = {1: (1.75, -1.4, 3.0), 2: (2.2, -1.5, 3.2), 3: (2.3, -1.5, 3.2)}
_YAW = (math.radians(20.0), math.radians(70.0))
_MIRRORED = {"left of": "right of", "right of": "left of"}


@dataclass(frozen=True)
class Solid:
    """One object that stands on the floor.

    Attributes:
        kind: One of `KINDS`.
        colour: One of `COLOURS`.
        shiny: Whether it has a highlight and reflects the sky.
        x: Centre, to the right of the picture's middle, in world units (the picture is about 4.2 wide).
        z: Centre, away from the camera.
        size: About half the height, in world units.
        yaw: Rotation about the vertical, radians; only a cube shows it. Drawn so that two sides are seen.
    """

    kind: str
    colour: str
    shiny: bool
    x: float
    z: float
    size: float
    yaw: float

    @property
    def radius(self) -> float:
        """Radius of the footprint: half the side for a cube."""
        return self.size * {"sphere": 1.0, "cube": 0.84, "cylinder": 0.78, "cone": 0.98}[self.kind]

    @property
    def height(self) -> float:
        return self.size * {"sphere": 2.0, "cube": 1.68, "cylinder": 1.84, "cone": 2.1}[self.kind]

    @property
    def reach(self) -> float:
        """Radius of the circle around the footprint."""
        return self.radius * (math.sqrt(2.0) if self.kind == "cube" else 1.0)

    @property
    def phrase(self) -> str:
        """`a red cube`, `a shiny blue sphere`, `an orange cone`."""
        words = f"shiny {self.colour} {self.kind}" if self.shiny else f"{self.colour} {self.kind}"
        return f"{'an' if words.startswith('orange') else 'a'} {words}"


@dataclass(frozen=True)
class World:
    """One scene, before it is a picture.

    Attributes:
        solids: In the order in which the caption names them.
        relation: Of the first to the second solid when there are two, else empty.
        floor: One of `FLOORS`.
        light: Azimuth of the light in radians; positive is from the right.
    """

    solids: tuple[Solid, ...]
    relation: str
    floor: str
    light: float

    @property
    def caption(self) -> str:
        phrases = [solid.phrase for solid in self.solids]
        if len(phrases) == 1:
            what = phrases[0]
        elif len(phrases) == 2:
            what = f"{phrases[0]} {self.relation} {phrases[1]}"
        else:
            what = f"from left to right {phrases[0]}, {phrases[1]} and {phrases[2]}"
        return f"{what} on a {self.floor} floor"

    def mirrored(self) -> "World":
        """The world whose picture is this one's, flipped left to right."""
        solids = tuple(replace(solid, x=-solid.x, yaw=-solid.yaw) for solid in self.solids)
        return World(
            solids=solids[::-1] if len(solids) == 3 else solids,
            relation=_MIRRORED.get(self.relation, self.relation),
            floor=self.floor,
            light=-self.light,
        )


def sample_world(seed: int) -> World:
    """Draw the world of a seed: 66 % with one solid, 26 % with two, 8 % with three.

    The solids stand anywhere in the picture, near and far, so that the caption leaves open where.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 2, 3], p=_SHARES))
    lateral = bool(rng.random() < 0.7)
    floor = str(rng.choice(list(FLOORS)))
    light = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.9, 1.35))
    while True:
        solids = [_sample_solid(rng, count) for _ in range(count)]
        if count == 2 and not lateral:
            solids.sort(key=lambda solid: solid.z)
        if count > 1 and (count == 3 or lateral):
            solids.sort(key=lambda solid: solid.x)
        if _stands_well(solids, lateral):
            break
    relation = ""
    if count == 2:
        relation = "left of" if lateral else "in front of"
        if rng.random() < 0.5:
            solids.reverse()
            relation = "right of" if lateral else "behind"
    return World(tuple(solids), relation, floor, light)


def _sample_solid(rng: np.random.Generator, count: int) -> Solid:
    spread, nearest, farthest = _PLACES[count]
    return Solid(
        kind=str(rng.choice(KINDS)),
        colour=str(rng.choice(list(COLOURS))),
        shiny=bool(rng.random() < 0.35),
        x=float(rng.uniform(-spread, spread)),
        z=float(rng.uniform(nearest, farthest)),
        size=float(rng.uniform(*_SIZES[count])),
        yaw=float(rng.uniform(*_YAW)),
    )


def _stands_well(solids: list[Solid], lateral: bool) -> bool:
    """Whether nothing touches, everything is in the picture and every relation can be seen."""
    if any(abs(solid.x) + solid.reach > 1.94 + 0.25 * solid.z for solid in solids):
        return False
    for first, second in itertools.pairwise(solids):
        dx, dz = second.x - first.x, second.z - first.z
        if math.hypot(dx, dz) < first.reach + second.reach + 0.08:
            return False
        if len(solids) == 3 or lateral:
            if dx < 0.85 * (first.radius + second.radius):
                return False
        elif dz < 1.35 or not 0.35 < abs(dx) < 1.1:
            return False
    return True
