"""What the demonstration follows: the edges of a photograph, and the depth of a rendered scene."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from PIL import Image

import controlkit as ck

SIDE = 128
SCENE_SEED = 12
SECOND_SCENE_SEED = 31
"""Stands in for the photograph where scikit-image, which ships it, is not installed."""


@dataclass(frozen=True)
class DemoSource:
    """One row of the sheet.

    Args:
        title: What it is and by what it is followed.
        picture: The source, 128 x 128.
        control_map: The map made from it.
        module: Name of the embedded control.
        prompt: What to draw instead.
        measure: How the result is compared with the map.
    """

    title: str
    picture: Image.Image
    control_map: Image.Image
    module: str
    prompt: str
    measure: Literal["edges", "depth"]


def sources(scene_seed: int = SCENE_SEED) -> tuple[DemoSource, DemoSource]:
    """The two rows: a photograph's edges, and a scene's exact depth.

    Args:
        scene_seed: Which scene; seeds below 1,000,000 were not trained on.
    """
    scene = ck.embedded.scene(scene_seed)
    photo, name, prompt = _photograph()
    edges = ck.preprocess(photo, "canny")
    return (
        DemoSource(f"Edges of {name}, by a ControlNet", photo, edges, "controlnet-canny", prompt, "edges"),
        DemoSource(
            "Depth of a rendered scene, by a T2I-Adapter",
            scene.image,
            scene.depth,
            "t2i-depth",
            _other_colours(scene.caption),
            "depth",
        ),
    )


def _photograph() -> tuple[Image.Image, str, str]:
    """A photograph, what to call it, and a prompt that its edges allow."""
    if importlib.util.find_spec("skimage") is None:
        scene = ck.embedded.scene(SECOND_SCENE_SEED)
        return scene.image, "a second rendered scene", _other_colours(scene.caption)
    from skimage import data

    coffee = Image.fromarray(data.coffee()).convert("RGB")
    crop = coffee.crop((100, 0, 500, 400))
    photo = crop.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return photo, "a photograph", "a shiny blue cylinder on a sand floor"


_SWAP = {
    "red": "blue", "blue": "orange", "green": "purple", "yellow": "cyan",
    "orange": "green", "purple": "yellow", "cyan": "red", "pink": "green",
}  # fmt: skip


def _other_colours(caption: str) -> str:
    """The same scene in other colours: what control keeps is the form."""
    return " ".join(_SWAP.get(word, word) for word in caption.split())
