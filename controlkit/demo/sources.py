"""What the demonstration follows: the edges of a photograph, and the depth of a rendered scene."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import controlkit as ck

if TYPE_CHECKING:
    from controlkit.embedded import Scene

SIDE = 128
SCENE_SEED = 14
"""The first held-out scene with a cube beside another solid."""
COINS = (18, 0, 119, 101)
"""Two of the coins in scikit-image's photograph, as (left, top, right, bottom)."""

EDGES = {"low_threshold": 80, "high_threshold": 200, "sigma": 1.5}
"""Enough blur to lose the coins' relief and the paper's grain, and keep their outlines."""

SECOND_SCENE_SEED = 31
"""Stands in for the photograph where scikit-image, which ships it, is not installed."""

Measure = Callable[[Sequence[Image.Image]], float]


@dataclass(frozen=True)
class DemoSource:
    """One block of the sheet.

    Args:
        title: What it is and by what it is followed.
        picture: The source, 128 x 128.
        control_map: The map made from it.
        module: Name of the embedded control.
        prompt: What to draw instead.
        score: Name of the measure, such as ``edge F1``.
        measure: Mean score of pictures against the map; 1 is perfect.
    """

    title: str
    picture: Image.Image
    control_map: Image.Image
    module: str
    prompt: str
    score: str
    measure: Measure


def sources(scene_seed: int = SCENE_SEED) -> tuple[DemoSource, DemoSource]:
    """The two blocks: a photograph's edges, and a scene's exact depth.

    Args:
        scene_seed: Which scene; seeds below 1,000,000 were not trained on.
    """
    scene = ck.embedded.scene(scene_seed)
    photo, name, prompt = _photograph()
    edges = ck.preprocess(photo.convert("L"), "canny", **EDGES)
    return (
        DemoSource(
            f"The edges of {name}, followed by a ControlNet",
            photo,
            edges,
            "controlnet-canny",
            prompt,
            "edge F1",
            _edges(edges),
        ),
        DemoSource(
            "The depth of a rendered scene, followed by a T2I-Adapter",
            scene.image,
            scene.depth,
            "t2i-depth",
            _other_colours(scene.caption),
            "depth correlation",
            _depth(scene),
        ),
    )


def _edges(edges: Image.Image) -> Measure:
    from controlkit.evaluation import edge_f1

    return lambda pictures: float(np.mean([edge_f1(picture, edges) for picture in pictures]))


def _depth(scene: Scene) -> Measure:
    """How well the depth that the judge reads from pictures agrees with the scene's, around its solids."""

    def measure(pictures: Sequence[Image.Image]) -> float:
        from controlkit.evaluation import depth_correlation, load_judge

        seen = load_judge().read(list(pictures)).depth
        side = seen.shape[-1]
        exact = np.asarray(scene.depth.convert("L").resize((side, side), Image.Resampling.BOX))
        solids = scene.labels[:: SIDE // side, :: SIDE // side] > 0
        return float(np.mean([depth_correlation(depth, exact, solids) for depth in seen]))

    return measure


def _photograph() -> tuple[Image.Image, str, str]:
    """A photograph, what to call it, and a prompt that its edges allow."""
    if importlib.util.find_spec("skimage") is None:
        scene = ck.embedded.scene(SECOND_SCENE_SEED)
        return scene.image, "a second rendered scene", _other_colours(scene.caption)
    from skimage import data

    coins = Image.fromarray(data.coins()).convert("RGB").crop(COINS)
    photo = coins.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return photo, "a photograph", "a red sphere left of a shiny blue sphere on a sand floor"


_SWAP = {
    "red": "blue",
    "blue": "orange",
    "green": "purple",
    "yellow": "cyan",
    "orange": "green",
    "purple": "yellow",
    "cyan": "red",
    "pink": "green",
}


def _other_colours(caption: str) -> str:
    """The same scene in other colours: what control keeps is the form."""
    words = [_SWAP.get(word, word) for word in caption.split()]
    for index, (word, after) in enumerate(itertools.pairwise(words)):
        if word in ("a", "an"):
            words[index] = "an" if after[0] in "aeiou" else "a"
    return " ".join(words)
