"""Where do training scenes come from? Rendered once into arrays on disk, read back by memory mapping.

A folder holds `image` (n, 128, 128, 3), `depth` (n, 128, 128), `instances` (n, 128, 128) as uint8 and
`scenes.json`, the captions, mirrored captions and objects. Scene i has the seed `FIRST_TRAINING_SEED` + i,
so that a folder can be rendered in parts and by several processes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controlkit.embedded.render import SIZE, render
from controlkit.embedded.world import COLOURS, FIRST_TRAINING_SEED, KINDS, sample_world

PART = 2000
"""Scenes per file."""


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes, in order of their seeds.

    Attributes:
        image: (n, 128, 128, 3) uint8.
        depth: (n, 128, 128) uint8, near is bright.
        instances: (n, 128, 128) uint8, 0 is the floor.
        captions: n captions, and the n captions of the mirrored pictures.
        objects: Per scene and solid, the indices of kind and colour, (n, 3, 2) int8, -1 where there is none.
    """

    image: list[np.ndarray]
    depth: list[np.ndarray]
    instances: list[np.ndarray]
    captions: tuple[list[str], list[str]]
    objects: np.ndarray

    def __len__(self) -> int:
        return len(self.captions[0])


def render_part(folder: Path, part: int) -> None:
    """Render the `PART` scenes of one part; does nothing when they are there."""
    done = folder / f"{part:03d}.json"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    image = np.empty((PART, SIZE, SIZE, 3), np.uint8)
    depth = np.empty((PART, SIZE, SIZE), np.uint8)
    instances = np.empty((PART, SIZE, SIZE), np.uint8)
    captions, mirrored, objects = [], [], np.full((PART, 3, 2), -1, np.int8)
    colours = list(COLOURS)
    for i in range(PART):
        world = sample_world(FIRST_TRAINING_SEED + part * PART + i)
        rendering = render(world)
        image[i], instances[i] = rendering.image, rendering.instances
        depth[i] = depth_to_bytes(rendering.inverse_depth)
        captions.append(world.caption)
        mirrored.append(world.mirrored().caption)
        for j, solid in enumerate(world.solids):
            objects[i, j] = KINDS.index(solid.kind), colours.index(solid.colour)
    for name, values in (("image", image), ("depth", depth), ("instances", instances), ("objects", objects)):
        np.save(folder / f"{part:03d}-{name}.npy", values)
    done.write_text(json.dumps([captions, mirrored]))


def depth_to_bytes(inverse_depth: np.ndarray) -> np.ndarray:
    return np.round(inverse_depth * 255.0).astype(np.uint8)


def load_scenes(folder: Path, parts: int | None = None) -> Scenes:
    """Map all finished parts, or the first `parts` of them."""
    names = sorted(path.stem for path in folder.glob("*.json"))[:parts]
    if not names:
        raise FileNotFoundError(f"no rendered scenes in {folder}; run the stage `render` first")

    def mapped(what: str) -> list[np.ndarray]:
        return [np.load(folder / f"{name}-{what}.npy", mmap_mode="r") for name in names]

    captions = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    return Scenes(
        image=mapped("image"),
        depth=mapped("depth"),
        instances=mapped("instances"),
        captions=([c for part in captions for c in part[0]], [c for part in captions for c in part[1]]),
        objects=np.concatenate(mapped("objects")),
    )
