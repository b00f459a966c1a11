"""Photographs and rendered scenes, and the maps of them that are right, for the tests of `check_map`.

The photographs are those that scikit-image ships, cut into squares that do not overlap. Which photographs and
scenes choose thresholds (`TUNING`) and which measure (`HELD_OUT`) is drawn once, with seed 7, by photograph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import skimage
from PIL import Image, ImageDraw

from controlkit.embedded import scene
from controlkit.maps.palettes import PALETTES
from controlkit.preprocessors import preprocess

FOLDER = Path(skimage.__file__).parent / "data"
NAMES = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "motorcycle_left.png")
NAMES += (
    "rocket.jpg",
    "retina.jpg",
    "ihc.png",
    "grass.png",
    "gravel.png",
    "brick.png",
    "hubble_deep_field.jpg",
)
_ORDER = [str(name) for name in np.random.default_rng(7).permutation(NAMES)]
TUNING, HELD_OUT = _ORDER[:5], _ORDER[5:]


def squares(names: list[str], side: int = 224) -> list[Image.Image]:
    """Squares of the photographs, none of which shares a pixel with another; at most four of each."""
    found: list[Image.Image] = []
    for name in names:
        photo = Image.open(FOLDER / name).convert("RGB")
        places = [
            (left, top)
            for top in range(0, photo.height - side + 1, side)
            for left in range(0, photo.width - side + 1, side)
        ]
        step = max(1, len(places) // 4)
        found += [photo.crop((x, y, x + side, y + side)) for x, y in places[::step][:4]]
    return found


def maps_of(photo: Image.Image, detector: str, **options: Any) -> Image.Image:
    """A detector's map."""
    return preprocess(photo, detector, **options)


def normals(depth: Image.Image) -> Image.Image:
    """Exact surface normals of an inverse depth, towards the viewer, x right, y up, as colours."""
    values = np.asarray(depth.convert("L"), np.float32) / 255
    down, across = np.gradient(values)
    vectors = np.stack([across * 20, down * 20, np.ones_like(values)], axis=2)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return Image.fromarray(np.rint((vectors + 1) * 127.5).astype(np.uint8))


def regions(photo: Image.Image, seed: int, palette: str = "ade20k") -> Image.Image:
    """The photograph's bright and dark regions in colours of a palette."""
    small = np.asarray(photo.convert("L").resize((24, 24)).resize(photo.size, Image.Resampling.BICUBIC))
    labels = np.minimum(small // 43, 5)
    table = np.array(PALETTES[palette], np.uint8)
    chosen = np.random.default_rng(seed).choice(len(table), 6, replace=len(table) < 6)
    return Image.fromarray(table[chosen][labels])


def pose(seed: int, side: int = 256) -> Image.Image:
    """A skeleton in OpenPose's look: limbs in pure hues at 0.6, joints, on black."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        x, y, size = rng.uniform(60, side - 60), rng.uniform(30, 80), rng.uniform(40, 110)
        offsets = [(0, 0), (0, 0.3), (-0.3, 0.3), (0.3, 0.3), (-0.4, 0.7), (0.4, 0.7)]
        offsets += [(-0.15, 0.9), (0.15, 0.9), (-0.2, 1.4), (0.2, 1.4)]
        joints = [
            (x + size * (a + rng.normal(0, 0.08)), y + size * (b + rng.normal(0, 0.05))) for a, b in offsets
        ]
        bones = [(0, 1), (1, 2), (1, 3), (2, 4), (3, 5), (1, 6), (1, 7), (6, 8), (7, 9)]
        for number, (a, b) in enumerate(bones):
            draw.line([joints[a], joints[b]], fill=hue(number / 9, 0.6), width=4)
        for number, (a, b) in enumerate(joints):
            draw.ellipse((a - 3, b - 3, a + 3, b + 3), fill=hue(number / 10, 1.0))
    return picture


def hue(turn: float, value: float) -> tuple[int, int, int]:
    """A pure hue."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(turn, 1.0, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def negative(picture: Image.Image) -> Image.Image:
    """Dark for bright."""
    return Image.fromarray(255 - np.asarray(picture))


def recoloured(labels: Image.Image, seed: int) -> Image.Image:
    """A label map in vivid colours of no palette."""
    pixels = np.asarray(labels)
    _, numbers = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    start = np.random.default_rng(seed).uniform()
    table = np.array([hue((start + k * 0.618) % 1, 0.83) for k in range(numbers.max() + 1)], np.uint8)
    return Image.fromarray(table[numbers.reshape(pixels.shape[:2])])


def scenes(first: int, count: int) -> list[Any]:
    """Rendered scenes, of seeds that no model has seen."""
    return [scene(first + number) for number in range(count)]
