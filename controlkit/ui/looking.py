"""What a module will see of a picture: after the detector, at the size of the run, with its region."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.errors import ControlKitError
from controlkit.recipes import ControlRecipe
from controlkit.ui import listing, warming
from controlkit.ui.places import Places

if TYPE_CHECKING:
    from PIL import Image

OUTSIDE = 0.3
"""Brightness outside the region in the picture that shows where a control acts."""


@dataclass(frozen=True)
class Seen:
    """What a module will see.

    Args:
        map: The very pixels that it gets, at the size of the run.
        shown: The same, darkened where its effect is masked away.
        notes: What was done to it: detecting, resizing.
        doubt: One sentence where the map looks wrong for this module; empty where it does not.
        condition: What the module's maps show, where that is known.
    """

    map: Image.Image
    shown: Image.Image
    notes: tuple[str, ...]
    doubt: str
    condition: str


def seen(part: ControlRecipe, places: Places, width: int, height: int) -> Seen:
    """The map of a control, as it will be used in a run of this size. Loads no weights but the detector's.

    Args:
        part: The control.
        places: Where weights are; pictures are in the recipe.
        width: Of the run, in pixels.
        height: Of the run, in pixels.

    Raises:
        ControlKitError: The picture, the detector, its options or the mask cannot be used.
    """
    warming.imported()
    from controlkit.binding import read_map, read_mask
    from controlkit.images import fit, to_picture
    from controlkit.maps import check_map
    from controlkit.maps.conditions import condition_named

    info = _info(part.module.source, places)
    condition = str(part.options.get("condition") or info.get("condition") or "")
    bound = read_map(
        places.files.picture(part.image),
        channels=_channels(info),
        detect=part.detect,
        detect_options=part.detect_options,
        resize=part.resize,
        channel_order=part.channel_order,  # pyright: ignore[reportArgumentType]
        base=str(info.get("base") or "other"),
    )
    rows, note = fit(bound.rows, (height, width), resize=part.resize)
    picture = to_picture(rows[0].clamp(0, 1))
    notes = bound.notes if note is None else (*bound.notes, note)
    shown = picture
    if part.mask is not None:
        region = fit(read_mask(places.files.picture(part.mask)), (height, width), labels=False)[0]
        shown = to_picture((rows[0] * (OUTSIDE + (1 - OUTSIDE) * region[0])).clamp(0, 1))
        notes = (*notes, f"acts on {float(region.mean()):.0%} of the picture, shown bright")
    doubt = ""
    if condition and condition_named(condition):
        check = check_map(picture, condition)
        doubt = "" if check.ok else str(check)
    return Seen(picture, shown, notes, doubt, condition)


def _info(source: str, places: Places) -> dict[str, Any]:
    """About the weights; nothing where they cannot be had now (on the hub): running then says why."""
    try:
        return listing.about(source, places)
    except ControlKitError:
        if not source.startswith("hub:"):
            raise
        return {}


def _channels(info: dict[str, Any]) -> int:
    """Channels of the maps that it reads, 3 or 1."""
    config = info.get("config") or {}
    found = config.get("conditioning_channels") if info.get("kind") == "controlnet" else None
    if info.get("kind") == "t2i-adapter":
        found = config.get("in_channels")
    return 1 if found in (1, 64) else 3


def size_of(source: str, places: Places) -> tuple[int, int]:
    """Width and height that a model makes by itself, from its config; 512 where that cannot be told.

    Raises:
        ControlKitError: A ``file:`` source that is not there.
    """
    from controlkit import embedded

    scheme, _, _ = source.partition(":")
    if scheme not in ("embedded", "file"):
        return 512, 512
    folder = embedded.path("base") if scheme == "embedded" else places.files.weights(source)
    if folder.is_file():
        from controlkit.recipes.single import side_of

        side = side_of(folder) or 512
        return side, side
    sample = _entry(folder / "unet" / "config.json", "sample_size")
    blocks = _entry(folder / "vae" / "config.json", "block_out_channels")
    if not isinstance(sample, int) or not isinstance(blocks, list):
        return 512, 512
    side = int(sample * math.prod([2] * (len(blocks) - 1)))
    return side, side


def _entry(path: Any, name: str) -> Any:
    try:
        return json.loads(path.read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        return None
