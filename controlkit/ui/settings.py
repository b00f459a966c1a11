"""What is set on the page, as plain values: no widget and no recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

UNITS = 8
"""Controls that the page has room for."""
GUIDES = 4
"""Guidance functions that the page has room for."""
NO_DETECTOR = "none: it is a map"
NO_SCHEDULER = "the model's own"

NETWORKS: dict[str, dict[str, Any]] = {
    "classifier": {"network": "embedded:classifier"},
    "text": {"model": "embedded:clip"},
    "image": {"model": "embedded:clip"},
    "depth": {"network": "embedded:depth"},
    "segmentation": {"network": "embedded:segmentation"},
}
"""Options that guidance functions begin with: networks for the embedded model."""


@dataclass
class Unit:
    """One control on the page.

    Args:
        use: Whether it acts.
        module: Source of the weights.
        image: The photograph or map.
        detector: Name of the detector, or `NO_DETECTOR`.
        fit: Whether the detector looks at the size of the run.
        options: Of the detector.
        scale: A number.
        points: A curve in its place, such as ``0:1, 0.5:0.2``; empty: none.
        start: Of the window.
        end: Of the window.
        mode: As in recipes.
        mask: The region, white inside; None: everywhere.
        blocks: Block scales with commas between; empty: all 1.
        resize: As in recipes.
        rest: What else the recipe said.
    """

    use: bool = False
    module: str = "embedded:controlnet-canny"
    image: Image.Image | None = None
    detector: str = "canny"
    fit: bool = True
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    scale: float = 1.0
    points: str = ""
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    mask: Image.Image | None = None
    blocks: str = ""
    resize: str = "stretch"
    rest: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Guide:
    """One guidance function on the page.

    Args:
        use: Whether it acts.
        kind: Its name.
        target: What to steer towards, in words, numbers or JSON.
        image: What to steer towards, as a picture.
        where: Where: a picture, white inside; an option of ``color`` and ``region``.
        scale: A number.
        start: Of the window.
        end: Of the window.
        options: As JSON.
        rest: What else the recipe said.
    """

    use: bool = False
    kind: str = "color"
    target: str = ""
    image: Image.Image | None = None
    where: Image.Image | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    options: str = ""
    rest: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Start:
    """The picture to start from.

    Args:
        image: The picture; None: noise alone.
        strength: How much becomes new.
        mask: What is drawn anew, white; None: all of it.
        blur: Pixels over which the mask fades.
        margin: Pixels around the mask, where only that part is drawn; empty: all of the picture.
        resize: As in recipes.
        rest: What else the recipe said.
    """

    image: Image.Image | None = None
    strength: float = 0.8
    mask: Image.Image | None = None
    blur: float = 4.0
    margin: str = ""
    resize: str = "stretch"
    rest: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Page:
    """Everything that is set on the page.

    Args:
        prompt: What to draw.
        negative: What not to draw.
        model: Source of the model.
        scheduler: Name, or `NO_SCHEDULER`.
        steps: Denoising steps.
        seed: Of the first picture.
        width: In pixels; 0: the model's own.
        height: In pixels; 0: the model's own.
        guidance_scale: Of classifier-free guidance.
        images: How many.
        rest: What else the recipe said.
        start: The picture to start from.
        units: The controls.
        guides: The guidance functions.
    """

    prompt: str = "a red cube on a sand floor"
    negative: str = ""
    model: str = "embedded:base"
    scheduler: str = NO_SCHEDULER
    steps: float = 20
    seed: float | str = 0
    width: float = 0
    height: float = 0
    guidance_scale: float = 2.0
    images: float = 1
    rest: dict[str, Any] = field(default_factory=dict[str, Any])
    start: Start = field(default_factory=Start)
    units: list[Unit] = field(default_factory=lambda: [Unit() for _ in range(UNITS)])
    guides: list[Guide] = field(default_factory=lambda: [Guide() for _ in range(GUIDES)])
