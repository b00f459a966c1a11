"""Run a detector on a picture, or on many."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from controlkit.errors import ControlKitError, ParameterError
from controlkit.images import as_pictures
from controlkit.images.limits import tell
from controlkit.images.tensors import is_tensor
from controlkit.preprocessors.base import Detector
from controlkit.preprocessors.registry import build
from controlkit.preprocessors.sizes import Resolution, Size, brought_back, looked_at, resized

BATCH = 8
"""Photographs of one size that a detector gets at once."""


@overload
def preprocess(
    image: Image.Image,
    detector: str | Detector,
    *,
    size: Size = None,
    resolution: Resolution = None,
    any_aspect: bool = False,
    **options: Any,
) -> Image.Image: ...
@overload
def preprocess(
    image: list[Any] | tuple[Any, ...],
    detector: str | Detector,
    *,
    size: Size = None,
    resolution: Resolution = None,
    any_aspect: bool = False,
    **options: Any,
) -> list[Image.Image]: ...
@overload
def preprocess(
    image: Any,
    detector: str | Detector,
    *,
    size: Size = None,
    resolution: Resolution = None,
    any_aspect: bool = False,
    **options: Any,
) -> Image.Image | list[Image.Image]: ...
def preprocess(
    image: Any,
    detector: str | Detector,
    *,
    size: Size = None,
    resolution: Resolution = None,
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
        resolution: The shortest side, in pixels, at which the detector looks, where that is to differ from
            the map's; ``auto``: 512, what most modules were trained on (``module.on`` with
            ``detect_options={"resolution": "auto"}`` takes its own base model's: 512 for SD 1.x, 768 for
            SD 2.x, 1024 for SDXL). The map is brought to its size afterwards, labels and one-pixel lines
            without blur. None: it looks at the map's size.
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
        (isinstance(image, np.ndarray) or is_tensor(image)) and image.ndim == 4
    )
    photos = [resized(photo, size) for photo in photos]
    results = _detected([looked_at(photo, resolution) for photo in photos], chosen)
    maps = [_as_map(result, photo, chosen, notes) for result, photo in zip(results, photos, strict=True)]
    for i, one in enumerate(maps):
        if one.info["controlkit"]["empty"]:
            which = f"image[{i}]" if several else "image"
            tell(f"{chosen.name} found nothing in {which}: the map is empty")
    return maps if several else maps[0]


def _detected(photos: list[Image.Image], detector: Detector) -> list[NDArray[np.uint8]]:
    """What a detector makes of photographs, those of one size together."""
    alike: dict[tuple[int, int], list[int]] = {}
    for i, photo in enumerate(photos):
        alike.setdefault(photo.size, []).append(i)
    found: dict[int, NDArray[np.uint8]] = {}
    for size, members in alike.items():
        for start in range(0, len(members), BATCH):
            some = members[start : start + BATCH]
            made = _asked(detector, [np.asarray(photos[i]) for i in some], size)
            found.update(zip(some, made, strict=True))
    return [found[i] for i in range(len(photos))]


def _asked(
    detector: Detector, photos: list[NDArray[np.uint8]], size: tuple[int, int]
) -> list[NDArray[np.uint8]]:
    """The detector's maps of photographs of one size, as they should be."""
    try:
        results = [np.asarray(result) for result in detector.detect_many(photos)]
    except ControlKitError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ControlKitError(
            f"detector {detector.name!r}",
            found=f"a failure on a picture of {size[0]} x {size[1]} ({cause})"[:300],
            fix="Please report it with the picture.",
            code="CK-H24",
        ) from error
    shape = (size[1], size[0])
    shapes = [(*shape, 4)] if detector.hides else [shape, (*shape, 3)]
    if len(results) != len(photos):
        raise _fault(detector, f"{len(results)} maps for {len(photos)} pictures", "one each")
    for result in results:
        if result.dtype != np.uint8 or result.shape not in shapes:
            found = f"a map of shape {result.shape} and type {result.dtype}"
            raise _fault(detector, found, f"uint8 of {' or '.join(map(str, shapes))}")
    return results


def _fault(detector: Detector, found: str, expected: str) -> ControlKitError:
    return ControlKitError(
        f"detector {detector.name!r}",
        found=found,
        expected=expected,
        fix="This is a fault of the detector.",
        code="CK-H24",
    )


def _as_map(
    result: NDArray[np.uint8], photo: Image.Image, detector: Detector, notes: list[str]
) -> Image.Image:
    """What a detector made as a picture of the photograph's size, with what is to be known about it."""
    empty = detector.marks and not result.any()
    seen = brought_back(result[..., :3] if detector.hides else result, photo.size)
    image = Image.fromarray(np.ascontiguousarray(seen)).convert("RGB")
    if detector.hides:
        hidden = Image.fromarray(np.ascontiguousarray(result[..., 3]))
        image.info["hidden"] = hidden.resize(photo.size, Image.Resampling.NEAREST)
    image.info["controlkit"] = {
        "detector": detector.name,
        "options": asdict(detector),  # pyright: ignore[reportArgumentType]
        "empty": empty,
        "notes": list(notes),
    }
    return image
