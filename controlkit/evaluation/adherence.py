"""Does a picture follow its control and its caption? Higher is better, in [0, 1].

A correlation lies in [-1, 1]. Edges are measured on the picture itself. Depth, kinds and colours are read
from it by the judge (`judge.py`), a network trained on rendered pictures only.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from controlkit.embedded.scenes import canny_array

TOLERANCE = 2.0
"""Pixels by which an edge may be off and still count, at 128x128."""

BAND = 4
"""Pixels by which the foreground is widened at 64x64 where depth is compared."""


def edge_f1(image: Image.Image, canny_map: Image.Image, tolerance: float = TOLERANCE) -> float:
    """How well the edges of a picture agree with an edge map.

    Precision is the share of the picture's edge pixels (canny 60/140 on gray) with an edge of the map
    within `tolerance`, recall the share of the map's with an edge of the picture; F1 is their harmonic
    mean. For several pictures, take the mean of the F1 of each.

    Args:
        image: RGB.
        canny_map: Of the same size; bright is edge.
        tolerance: Greatest Euclidean distance in pixels.

    Returns:
        In [0, 1]; 1 if neither has an edge, 0 if only one has.

    Raises:
        ValueError: If the sizes differ.
    """
    if image.size != canny_map.size:
        raise ValueError(f"canny_map is {canny_map.size}, the image {image.size}; resize one of them")
    found = canny_array(np.asarray(image.convert("RGB"))) > 0
    wanted = np.asarray(canny_map.convert("L")) > 127
    return f1_of_edges(found, wanted, tolerance)


def f1_of_edges(
    found: np.ndarray, wanted: np.ndarray, tolerance: float = TOLERANCE, where: np.ndarray | None = None
) -> float:
    """As `edge_f1`, from two boolean edge maps (height, width).

    Args:
        found: Edges of the picture.
        wanted: Edges of the map.
        tolerance: Greatest Euclidean distance in pixels.
        where: (height, width) bool; edges outside are not judged, but do count as near. None: everywhere.
    """
    counted = (found, wanted) if where is None else (found & where, wanted & where)
    if not counted[0].any() or not counted[1].any():
        return float(not counted[0].any() and not counted[1].any())
    precision = float((_distance_to(wanted)[counted[0]] <= tolerance).mean())
    recall = float((_distance_to(found)[counted[1]] <= tolerance).mean())
    return 2.0 * precision * recall / (precision + recall) if precision + recall > 0.0 else 0.0


def _distance_to(edges: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the nearest edge, exact up to a few pixels."""
    import cv2

    return cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def foreground_band(mask: np.ndarray, band: int = BAND) -> np.ndarray:
    """A boolean mask (height, width), widened by `band` pixels in each of the eight directions."""
    import cv2

    side = 2 * band + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def depth_correlation(depth: np.ndarray, exact: np.ndarray, mask: np.ndarray) -> float:
    """Pearson's correlation of two depth maps on the foreground and a band around it.

    All scenes share the floor, so over a whole picture even unrelated scenes correlate.

    Args:
        depth: (height, width), inverse depth as read from a picture.
        exact: (height, width), what was asked for; only relative values matter.
        mask: (height, width) bool, the foreground of `exact`; widened by `BAND` pixels.

    Returns:
        In [-1, 1]; 0 if either is constant there or the foreground is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    if not depth.shape == exact.shape == mask.shape:
        raise ValueError(f"shapes differ: depth {depth.shape}, exact {exact.shape}, mask {mask.shape}")
    where = foreground_band(mask)
    a, b = depth[where].astype(np.float64), exact[where].astype(np.float64)
    if a.size == 0 or a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def segmentation_iou(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean intersection over union of the labels of `wanted`, the floor (0) left out.

    Args:
        found: (height, width) labels as read from a picture.
        wanted: (height, width) labels that were asked for.

    Returns:
        In [0, 1]; 1 if `wanted` has no label but the floor.

    Raises:
        ValueError: If the shapes differ.
    """
    if found.shape != wanted.shape:
        raise ValueError(f"shapes differ: found {found.shape}, wanted {wanted.shape}")
    labels = [label for label in np.unique(wanted) if label != 0]
    shares = [
        ((found == label) & (wanted == label)).sum() / ((found == label) | (wanted == label)).sum()
        for label in labels
    ]
    return float(np.mean(shares)) if shares else 1.0


def commonest(labels: np.ndarray, where: np.ndarray | None = None) -> int:
    """The most frequent label but the floor, 0 if there is none; for one object's kind or colour."""
    counts = np.bincount((labels if where is None else labels[where]).ravel(), minlength=1)
    counts[0] = 0
    return int(counts.argmax()) if counts.any() else 0


def binding(colours: np.ndarray, instances: np.ndarray, wanted: Sequence[int]) -> float:
    """Share of the objects that have their colour at their place.

    Args:
        colours: (height, width) colour labels as read from a picture; 0 is the floor.
        instances: (height, width) exact; i at the place of the i-th object, counted from 1.
        wanted: Colour label of each object.

    Returns:
        In [0, 1]; an object counts when its colour is the commonest of the non-floor labels at its place.
    """
    right = [commonest(colours, instances == i) == colour for i, colour in enumerate(wanted, 1)]
    return float(np.mean(right)) if right else 1.0
