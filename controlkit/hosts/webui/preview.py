"""What the panel's Preview button shows: the map as the module would see it, and what is doubtful in it."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from PIL import Image

from controlkit.binding import read_map
from controlkit.errors import ControlKitError
from controlkit.hosts.webui import controls, encoders, files, units
from controlkit.hosts.webui.units import Unit
from controlkit.images import fit
from controlkit.module import ControlModule, MapModule

FIELDS = ("image", "mask", "model", "detector", "options", "resize", "size", "pixel_perfect", "condition")
"""What the button reads of its unit, in this order; then width and height of the picture."""


def previewer(load: Callable[[Unit], ControlModule | None]) -> Callable[..., tuple[Any, str]]:
    """The function of the button.

    Args:
        load: The module of a unit, or None where it names none.
    """

    def preview(*values: Any) -> tuple[Any, str]:
        width, height = (int(value or 512) for value in values[len(FIELDS) :])
        given = dict(zip(FIELDS, values[: len(FIELDS)], strict=True))
        try:
            unit = units.unit_of({**given, "enabled": True}, "unit")
            picture, said = shown(unit, load(unit), (width, height))
        except ControlKitError as error:
            return None, _line(str(error), bad=True)
        return picture, said

    return preview


def module_of(unit: Unit) -> ControlModule | None:
    """The module of a unit's file, loaded as for a picture; None where none is chosen."""
    if unit.model == units.NONE:
        return None
    return files.load(files.path_of(unit.model, files.folders()), files.dtype())


def shown(unit: Unit, module: ControlModule | None, made: tuple[int, int]) -> tuple[Image.Image, str]:
    """A unit's map at the size of a picture, and lines of HTML about it.

    Args:
        unit: The unit.
        module: Its module, or None: a map in colours is shown.
        made: Width and height of the picture that is made.

    Raises:
        ControlKitError: There is no map.
    """
    p = SimpleNamespace(width=made[0], height=made[1], init_images=None, image_mask=None)
    image = controls.image_of(unit, "unit", p)
    content = unit.condition.lower() == controls.CONTENT
    if module is not None and encoders.reads(module) is not None and (content or not _has_maps(module)):
        return _square(image), _line("What the image encoder sees: the middle square.")
    detector, options, _ = controls.reading(unit, "unit", image, p)
    condition = None if unit.condition == units.NONE else unit.condition
    channels = module.map_channels if isinstance(module, MapModule) else 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the notes
        bound = read_map(
            image,
            channels=channels,
            detect=detector,
            detect_options=options,
            resize=unit.resize,  # pyright: ignore[reportArgumentType]
            channel_order=None,
            condition=condition or (module.condition if module is not None else None),
            base=module.base if module is not None else "other",
        )
    rows, note = fit(bound.rows, (made[1], made[0]), resize=bound.resize)
    pixels = (rows[0].clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    notes = [*bound.notes, *([] if note is None else [note])]
    said = [_line(note, bad=note.startswith("doubtful")) for note in notes]
    return Image.fromarray(pixels), "".join([_line(f"{made[0]}x{made[1]}, as the module sees it"), *said])


def _has_maps(module: ControlModule) -> bool:
    return bool(getattr(module, "has_local", False))


def _square(image: Any) -> Image.Image:
    first: Any = cast("list[Any]", image)[0] if isinstance(image, list) else image
    picture: Image.Image = first if isinstance(first, Image.Image) else Image.fromarray(np.asarray(first))
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    return picture.convert("RGB").crop((left, top, left + side, top + side)).resize((224, 224))


def _line(text: str, *, bad: bool = False) -> str:
    body = html.escape(text)
    return f"<p>⚠ <b>{body}</b></p>" if bad else f"<p>{body}</p>"
