"""Folders of small photographs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


def fill(folder: Path, count: int, side: int = 96, seed: int = 5) -> Path:
    """Crops of the photographs that scikit-image ships with, in three folders, some nested."""
    draw = random.Random(seed)
    photos: list[Image.Image] = []
    for name in NAMES:
        with Image.open(Path(skimage.data_dir) / name) as photo:
            photos.append(photo.convert("RGB"))
    for i in range(count):
        photo = draw.choice(photos)
        left, top = draw.randrange(photo.width - side), draw.randrange(photo.height - side)
        path = folder / ("", "a", "a/b c")[i % 3] / f"photo {i:03d}.{('jpg', 'png', 'webp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + side, top + side)).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven photographs."""
    return fill(tmp_path / "photos", 7)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".manifest.jsonl.lock"
    }


def noise(side: int = 32, seed: int = 0) -> Image.Image:
    """A picture full of edges."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)
