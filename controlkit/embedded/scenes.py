"""A scene as a user sees it: picture, caption, and the exact control maps.

The maps follow the conventions of the detectors of the same names, so that a map of this file and a
detector's map of the picture can stand for each other.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from controlkit.embedded.render import render
from controlkit.embedded.world import KINDS, World, sample_world
from controlkit.extras import needed

CANNY_LOW, CANNY_HIGH = 60, 140
"""Thresholds of the edge map, on gray values in [0, 255], gradient as OpenCV's L1 norm."""

LABELS = ("floor", *KINDS)
"""What the numbers of `Scene.labels` mean."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (80, 50, 50),
    (0, 102, 200),
    (250, 127, 4),
    (120, 185, 128),
    (224, 5, 255),
)
"""Colour of each label in the segmentation map."""


@dataclass(frozen=True)
class Scene:
    """Exact ground truth of one scene of the small world.

    All pictures are PIL images, RGB, 128x128.

    Attributes:
        seed: What it was made from.
        world: The solids, floor and light.
        image: The picture.
        caption: What it shows, in the vocabulary of the embedded text encoder.
        depth: Inverse depth: near is bright, 255 is 4.5 world units from the camera's plane, 0
            infinitely far.
        seg: Segmentation: the colour `PALETTE[label]`.
        labels: (128, 128) uint8, the index into `LABELS` of the kind at each pixel; 0 is the floor.
        instances: (128, 128) uint8; 0 is the floor, i the solid `world.solids[i - 1]`.
    """

    seed: int
    world: World
    image: Image.Image
    caption: str
    depth: Image.Image
    seg: Image.Image
    labels: np.ndarray
    instances: np.ndarray

    @cached_property
    def canny(self) -> Image.Image:
        """Edges of the picture, white on black; see `canny_map`. Needs OpenCV."""
        return canny_map(self.image)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each solid, in the order of the caption and of `instances`."""
        return tuple(solid.kind for solid in self.world.solids)

    @property
    def colours(self) -> tuple[str, ...]:
        """Colour of each solid, in the order of the caption and of `instances`."""
        return tuple(solid.colour for solid in self.world.solids)


def scene(seed: int) -> Scene:
    """Make the scene of a seed.

    Args:
        seed: Not negative. The same seed gives the same scene everywhere. Seeds below 1,000,000 are held
            out: no embedded model has seen them.

    Raises:
        ValueError: If the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected a number from 0 on; below 1000000 scenes are held out")
    world = sample_world(seed)
    rendering = render(world)
    kinds = np.array([0, *(KINDS.index(solid.kind) + 1 for solid in world.solids)], np.uint8)
    labels = kinds[rendering.instances]
    depth = np.round(rendering.inverse_depth * 255.0).astype(np.uint8)
    return Scene(
        seed=seed,
        world=world,
        image=Image.fromarray(rendering.image),
        caption=world.caption,
        depth=Image.fromarray(np.repeat(depth[..., None], 3, axis=2)),
        seg=Image.fromarray(np.array(PALETTE, np.uint8)[labels]),
        labels=labels,
        instances=rendering.instances,
    )


def canny_map(image: Image.Image) -> Image.Image:
    """Edge map of a picture: OpenCV's Canny on its gray values, thresholds 60 and 140, white on black.

    Args:
        image: RGB, any size.

    Returns:
        RGB of the same size; each pixel is (0, 0, 0) or (255, 255, 255).

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    return Image.fromarray(np.repeat(canny_array(np.asarray(image.convert("RGB")))[..., None], 3, axis=2))


def canny_array(image: np.ndarray) -> np.ndarray:
    """As `canny_map`, from (height, width, 3) uint8 to (height, width) uint8 with the values 0 and 255."""
    cv2 = needed("cv2", "the edge map of a scene", "opencv-python-headless")
    return cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), CANNY_LOW, CANNY_HIGH)
