"""Run a detector on a picture, or on many."""

from __future__ import annotations

from dataclasses import asdict
from numbers import Integral
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from controlkit.errors import ControlKitError, ParameterError
from controlkit.images import as_pictures
from controlkit.images.limits import check_pixels, tell
from controlkit.preprocessors.base import Detector
from controlkit.preprocessors.registry import build

Size: TypeAlias = int | tuple[int, int] | None


@overload
def preprocess(
    image: Image.Image,
    detector: str | Detector,
    *,
    size: Size = None,
    any_aspect: bool = False,
    **options: Any,
) -> Image.Image: ...
@overload
def preprocess(
    image: list[Any] | tuple[Any, ...],
    detector: str | Detector,
    *,
    size: Size = None,
    any_aspect: bool = False,
    **options: Any,
) -> list[Image.Image]: ...
@overload
def preprocess(
    image: NDArray[Any] | Tensor,
    detector: str | Detector,
    *,
    size: Size = None,
    any_aspect: bool = False,
    **options: Any,
) -> Image.Image | list[Image.Image]: ...
def preprocess(
    image: Any,
    detector: str | Detector,
    *,
    size: Size = None,
    any_aspect: bool = False,
    **options: Any,
) -> Image.Image | list[Image.Image]:
    """Turn a photograph into a control map.

    Args:
        image: A PIL image, a numpy array or a torch tensor, as `controlkit.images.as_map` reads it; or a list
            or batch of them.
        detector: A name from `detectors`, or a detector object.
        size: Width and height of the map in pixels, as ``Image.size``; a single number is the shortest
            side, the proportions kept. The photograph is resized before it is looked at, so that lines have
            their proper width. None: the size of the input.
        any_aspect: Accept pictures whose sides differ by more than 16:1.
        **options: The detector's own.

    Returns:
        An RGB `PIL.Image.Image`; a list of them for a list or batch. ``map.info["controlkit"]`` holds
        ``detector``, ``options``, ``empty`` (nothing was found: the map is black) and ``notes``;
        ``map.info["hidden"]``, where pixels are hidden (``inpaint``), holds them, white on black, mode L.

    Raises:
        HintError: The picture cannot be used.
        ParameterError: No such detector or option, or a value out of range.
        MissingExtra: A package the detector needs is not installed; the message has the command.

    Warns:
        ControlKitWarning: For each note, and where nothing was found.

    Example:
        >>> from PIL import Image
        >>> preprocess(Image.new("RGB", (64, 48), "white"), "blur", sigma=3).size
        (64, 48)
    """
    if isinstance(detector, Detector):
        if options:
            raise ParameterError(
                "options",
                found=", ".join(options),
                expected="none beside a detector object, which has its own",
                fix="Set them where the object is made.",
            )
        chosen = detector
    else:
        chosen = build(detector, **options)
    notes: list[str] = []
    photos = as_pictures(image, any_aspect=any_aspect, notes=notes)
    for note in notes:
        tell(note)
    several = isinstance(image, (list, tuple)) or (
        isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4
    )
    maps = [_detect(photo, chosen, size, notes) for photo in photos]
    for i, one in enumerate(maps):
        if one.info["controlkit"]["empty"]:
            which = f"image[{i}]" if several else "image"
            tell(f"{chosen.name} found nothing in {which}: the map is empty")
    return maps if several else maps[0]


def _detect(photo: Image.Image, detector: Detector, size: Size, notes: list[str]) -> Image.Image:
    photo = _resized(photo, size)
    try:
        result = np.asarray(detector.detect(np.asarray(photo)))
    except ControlKitError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ControlKitError(
            f"detector {detector.name!r}",
            found=f"a failure on a picture of {photo.width} x {photo.height} ({cause})"[:300],
            fix="Please report it with the picture.",
            code="CK-H24",
        ) from error
    shape = (photo.height, photo.width)
    shapes = [(*shape, 4)] if detector.hides else [shape, (*shape, 3)]
    if result.dtype != np.uint8 or result.shape not in shapes:
        raise ControlKitError(
            f"detector {detector.name!r}",
            found=f"a map of shape {result.shape} and type {result.dtype}",
            expected=f"uint8 of {' or '.join(map(str, shapes))}",
            fix="This is a fault of the detector.",
            code="CK-H24",
        )
    seen = result[..., :3] if detector.hides else result
    image = Image.fromarray(np.ascontiguousarray(seen)).convert("RGB")
    if detector.hides:
        image.info["hidden"] = Image.fromarray(np.ascontiguousarray(result[..., 3]))
    image.info["controlkit"] = {
        "detector": detector.name,
        "options": asdict(detector),  # pyright: ignore[reportArgumentType]
        "empty": detector.marks and not result.any(),
        "notes": list(notes),
    }
    return image


def _resized(photo: Image.Image, size: Size) -> Image.Image:
    if size is None:
        return photo
    sides = _sides(size)
    if sides is None:
        raise ParameterError(
            "size",
            found=repr(size)[:80],
            expected="(width, height), or the shortest side, in whole pixels above 0",
            fix="For example 512, or image.size.",
        )
    if len(sides) == 1:
        factor = sides[0] / min(photo.size)
        sides = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    check_pixels(sides[0], sides[1], "size")
    return photo if sides == photo.size else photo.resize(sides, Image.Resampling.LANCZOS)


def _sides(size: object) -> tuple[int] | tuple[int, int] | None:
    """One or two positive whole numbers, or None where it is something else."""
    given = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    whole = [int(side) for side in given if isinstance(side, Integral) and not isinstance(side, bool)]
    if len(whole) != len(given) or len(whole) not in (1, 2) or min(whole) < 1:
        return None
    return (whole[0],) if len(whole) == 1 else (whole[0], whole[1])
