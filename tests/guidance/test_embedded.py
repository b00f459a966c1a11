"""Do the functions that need no network steer a trained model: nearer the target, from the same seeds?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.evaluation import load_judge
from controlkit.evaluation.adherence import edge_f1

STEPS = 6
SCENES = [ck.embedded.scene(seed) for seed in (3, 5)]
PROMPTS = ["a cube on a snow floor", "a sphere on a sand floor"]
g = ck.guidance


@cache
def pipe() -> Any:
    return ck.embedded.pipeline()


def draw(*controls: Any) -> list[Image.Image]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    with ck.attach(pipe(), *controls):
        return pipe()(PROMPTS, num_inference_steps=STEPS, guidance_scale=2.0, generator=generators).images


@cache
def unguided() -> list[Image.Image]:
    return draw()


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")) / 255.0


def flat(scene: Any) -> Image.Image:
    """The scene with each solid, and the floor, in its mean colour."""
    found = np.array(scene.image, dtype=np.float64)
    for number in np.unique(scene.instances):
        found[scene.instances == number] = found[scene.instances == number].mean(0)
    return Image.fromarray(found.astype(np.uint8))


def half() -> np.ndarray:
    mask = np.zeros((128, 128), np.float32)
    mask[:, :64] = 1
    return mask


def away(picture: Image.Image, wanted: Image.Image, where: np.ndarray | slice = np.s_[:]) -> float:
    """Root mean square difference, in [0, 1]."""
    return float(np.sqrt(((pixels(picture) - pixels(wanted))[where] ** 2).mean()))


@cache
def judge() -> Any:
    return load_judge()


def overlap(picture: Image.Image, scene: Any) -> float:
    """Intersection over union of everything that is not floor."""
    found, wanted = judge().read([picture]).kinds[0] > 0, scene.labels[::2, ::2] > 0
    return float((found & wanted).sum() / (found | wanted).sum())


FLAT = [flat(scene) for scene in SCENES]
RED = np.array([1.0, 0, 0])

CASES: dict[str, tuple[Callable[[], Any], Any, Callable[[Image.Image, int], float], float]] = {
    # The measure is of how far a picture is off; guided it must be below this share of the unguided one's.
    "edges": (g.edges, [s.canny for s in SCENES], lambda p, i: 1 - edge_f1(p, SCENES[i].canny), 0.75),
    "color": (g.color, "red", lambda p, i: float(np.abs(pixels(p).mean((0, 1)) - RED).mean()), 0.7),
    "segmentation": (g.segmentation, FLAT, lambda p, i: away(p, FLAT[i]), 0.7),
    "depth": (  # by what the judge calls a solid, which did not guide
        lambda: g.depth(ck.embedded.depth()),
        [s.depth for s in SCENES],
        lambda p, i: 1 - overlap(p, SCENES[i]),
        0.8,
    ),
    "region": (
        lambda: g.region(half()),
        [s.image for s in SCENES],
        lambda p, i: away(p, SCENES[i].image, half() > 0),
        0.7,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_guided_pictures_are_nearer_their_target(name: str) -> None:
    make, y, off, share = CASES[name]
    guided = draw(ck.Guidance(make(), y))
    before, after = (
        np.mean([off(picture, i) for i, picture in enumerate(pictures)]) for pictures in (unguided(), guided)
    )
    assert after < share * before
