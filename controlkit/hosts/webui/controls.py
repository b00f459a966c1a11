"""From units and guidance fields to controls: modules, maps and encoders read, units of one file joined.

A file that reads maps of several kinds (ControlNet-Union, Uni-ControlNet) is one control, whatever the number
of units that name it: each unit is one of its maps, or its content picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from controlkit import guidance
from controlkit.contracts import Control
from controlkit.errors import NotApplicable, ParameterError
from controlkit.guidance import Guidance
from controlkit.hosts.controlnet_names import perfect_side
from controlkit.hosts.webui import encoders, files, pictures, units
from controlkit.hosts.webui.units import Guide, Unit
from controlkit.hosts.written import read_numbers, read_options
from controlkit.module import ControlModule, MapModule
from controlkit.preprocessors import detectors

Numbered = tuple[int, Unit]
CONTENT = "content"
"""The condition of a unit whose picture is a Uni-ControlNet's content, and no map."""

_ALIKE = (
    ("mlsd", "lines"),
    ("hed", "softedge"),
    ("midas", "depth"),
    ("seg", "segment", "segmentation"),
    ("repaint", "inpaint"),
)
"""Names of one condition: modules use one, detectors another."""


def of_units(chosen: Sequence[Numbered], p: Any, kept: dict[str, Control]) -> list[Control]:
    """The controls of units, in their order.

    Args:
        chosen: The units, with their numbers.
        p: The web UI's processing; in img2img its picture stands in for one that a unit lacks.
        kept: What was made for this request before; added to.

    Raises:
        ControlKitError: One cannot be had.
    """
    groups: dict[str, list[Numbered]] = {}
    modules: dict[str, ControlModule] = {}
    for number, unit in chosen:
        name = f"unit {number}"
        if unit.model == units.NONE:
            raise ParameterError(f"{name}: model", found="none", expected="a control file", fix="Choose one.")
        path = files.path_of(unit.model, files.folders())
        module = files.load(path, files.dtype())
        group = str(path) if _joins(module) else name
        groups.setdefault(group, []).append((number, unit))
        modules[group] = module
    made: list[Control] = []
    for group, members in groups.items():
        key = ", ".join(f"unit {number}" for number, _ in members)
        if key not in kept:
            kept[key] = _control(modules[group], members, p)
        made.append(kept[key])
    return made


def image_of(unit: Unit, name: str, p: Any) -> Any:
    """A unit's picture; in img2img the picture itself where it has none.

    Raises:
        ParameterError: There is none.
    """
    image = pictures.read(unit.image, f"{name}: image")
    if image is None:
        image = (getattr(p, "init_images", None) or [None])[0]
    if image is None:
        raise ParameterError(f"{name}: image", found="nothing", expected="a picture")
    return image


def reading(unit: Unit, name: str, image: Any, p: Any) -> tuple[str | None, dict[str, Any] | None, Any]:
    """How a unit's picture is read: its detector, that one's options, and the mask that is left for the unit.

    Args:
        unit: The unit.
        name: Of it, for errors.
        image: Its picture.
        p: The web UI's processing, for the size of the picture that is made.
    """
    mask = pictures.read(unit.mask, f"{name}: mask")
    if unit.detector == units.NONE:
        return None, None, mask
    options = read_options(unit.options)
    if "size" not in options:
        if unit.pixel_perfect:
            made = (int(getattr(p, "width", 512)), int(getattr(p, "height", 512)))
            options["size"] = perfect_side(_size(image), made, unit.resize)
        elif unit.size:
            options["size"] = int(unit.size)
    if unit.detector == "inpaint" and not options.keys() & {"mask", "box"}:  # the part to be painted anew
        options["mask"] = getattr(p, "image_mask", None) if mask is None else mask
        mask = None
    return unit.detector, options, mask


def condition_of(unit: Unit, known: Sequence[str]) -> str | None:
    """Which of a module's conditions a unit's map is: as it says, or as its detector's maps are for."""
    said = unit.condition.lower()
    if said == units.NONE.lower():
        families = {info.name: info.family for info in detectors()}
        said = families.get(unit.detector, "")
    alike = next((names for names in _ALIKE if said in names), (said,))
    return next((name for name in known if name in alike), None)


def _joins(module: ControlModule) -> bool:
    from controlkit.adapters.controlnet_union import ControlNetUnion
    from controlkit.adapters.uni_controlnet import UniControlNet

    return isinstance(module, ControlNetUnion | UniControlNet)


def _control(module: ControlModule, members: Sequence[Numbered], p: Any) -> Control:
    from controlkit.adapters.controlnet_union import ControlNetUnion
    from controlkit.adapters.ip_adapter import IPAdapter
    from controlkit.adapters.style_adapter import StyleAdapter
    from controlkit.adapters.uni_controlnet import UniControlNet

    if isinstance(module, UniControlNet):
        return _uni(module, members, p)
    if isinstance(module, ControlNetUnion):
        return _union(module, members, p)
    number, unit = members[0]
    name = f"unit {number}"
    image = image_of(unit, name, p)
    options: dict[str, Any] = {"scale": unit.weight, "start": unit.start, "end": unit.end}
    resize: Any = unit.resize
    blocks = read_numbers(f"{name}: block_scales", unit.block_scales)
    if isinstance(module, MapModule):
        detector, found, mask = reading(unit, name, image, p)
        condition = None if unit.condition == units.NONE else unit.condition
        options |= {"detect": detector, "detect_options": found, "mask": mask, "mode": unit.mode}
        return module.on(image, resize=resize, block_scales=blocks, condition=condition, **options)
    if isinstance(module, IPAdapter | StyleAdapter):
        if unit.detector != units.NONE:
            raise ParameterError(
                f"{name}: detector",
                found=repr(unit.detector),
                expected="none",
                fix=f"A {module.kind} reads the picture itself.",
            )
        options["encoder"] = encoders.encoder_of(unit.encoder, module, files.encoder_folders())
        mask = pictures.read(unit.mask, f"{name}: mask")
        if isinstance(module, IPAdapter):
            mode: Any = unit.mode
            return module.on(image, mode=mode, mask=mask, block_scales=blocks, **options)
        if mask is not None or unit.mode != "balanced" or blocks:
            raise NotApplicable(
                name,
                found="a mask, a mode or block_scales",
                expected="none of them with a style adapter",
                fix="Its tokens act on the whole picture, as the prompt's do.",
            )
        return module.on(image, **options)
    raise NotApplicable(
        name,
        found=f"a {module.kind}",
        expected="a ControlNet, T2I-Adapter, Uni-ControlNet, IP-Adapter or style adapter",
        fix="This panel has no fields for its kind.",
    )


def _shared(members: Sequence[Numbered], fields: Sequence[str], p: Any) -> dict[str, Any]:
    """Fields that one file has but once; its units must not contradict each other.

    Raises:
        ParameterError: They do.
    """
    first, last = members[0][0], members[-1][0]
    found: dict[str, Any] = {}
    for field in fields:
        values = [getattr(unit, field) for _, unit in members]
        if field == "mask":
            values = [value for value in values if value is not None]
        if any(value is not values[0] and value != values[0] for value in values[1:]):
            raise ParameterError(
                f"units {first} to {last}: {field}",
                found=" and ".join(map(repr, values))[:80] if field != "mask" else "different masks",
                expected="the same, as they name one file, which has but one",
                fix=f"Give {field} the same value in each.",
            )
        found[field] = values[0] if values else None
    if "block_scales" in found:
        found["block_scales"] = read_numbers("block_scales", found["block_scales"])
    if "mask" in found:
        found["mask"] = pictures.read(found["mask"], f"unit {first}: mask")
    return found


def _named(
    members: Sequence[Numbered], known: Sequence[str], p: Any
) -> tuple[dict[str, Unit], dict[str, Any], dict[str, str], dict[str, Any]]:
    """Units by their condition, their pictures, detectors and options.

    Raises:
        ParameterError: A unit whose condition is not told, or one that two have.
    """
    by_name: dict[str, Unit] = {}
    images: dict[str, Any] = {}
    detect: dict[str, str] = {}
    options: dict[str, Any] = {}
    for number, unit in members:
        name = f"unit {number}"
        condition = condition_of(unit, known)
        if condition is None or condition in by_name:
            said = "another unit of this file" if condition else "what its map shows is not told"
            raise ParameterError(
                f"{name}: condition",
                found=f"{unit.condition!r}" + (f", as {said}" if condition else f", and {said}"),
                expected=f"one of {', '.join(known)}",
                fix="Choose what the map shows.",
            )
        image = image_of(unit, name, p)
        detector, chosen, _ = reading(unit, name, image, p)
        by_name[condition], images[condition] = unit, image
        if detector is not None:
            detect[condition], options[condition] = detector, chosen or {}
    return by_name, images, detect, options


def _union(module: Any, members: Sequence[Numbered], p: Any) -> Control:
    by_name, images, detect, options = _named(members, types_of(module), p)
    shared = _shared(members, ("mode", "resize", "mask", "block_scales"), p)

    def each(field: str) -> dict[str, float]:
        return {name: getattr(unit, field) for name, unit in by_name.items()}

    return module.on(
        images,
        detect=detect or None,
        detect_options=options or None,
        scale=each("weight"),
        start=each("start"),
        end=each("end"),
        **shared,
    )


def types_of(module: Any) -> tuple[str, ...]:
    """The conditions of a ControlNet-Union, by all names that they have."""
    from controlkit.adapters.controlnet_union.types import TYPES

    return tuple(name for names in TYPES[: module.config.num_control_type] for name in names)


def _uni(module: Any, members: Sequence[Numbered], p: Any) -> Control:
    content = [(n, unit) for n, unit in members if unit.condition.lower() == CONTENT]
    maps = [(n, unit) for n, unit in members if unit.condition.lower() != CONTENT]
    if len(content) > 1:
        raise ParameterError(
            f"unit {content[1][0]}: condition", found="a second content picture", expected="one"
        )
    _, images, detect, options = _named(maps, (*module.conditions, CONTENT), p)
    arguments = _shared(members, ("start", "end", "mode", "mask"), p)
    if maps:
        arguments |= _shared(maps, ("resize", "block_scales"), p)
        arguments["local_scale"] = _shared(maps, ("weight",), p)["weight"]
    if content:
        number, unit = content[0]
        arguments["content"] = image_of(unit, f"unit {number}", p)
        arguments["encoder"] = encoders.encoder_of(unit.encoder, module, files.encoder_folders())
        arguments["global_scale"] = unit.weight
    return module.on(images, detect=detect, detect_options=options, **arguments)


def guidance_of(guide: Guide, name: str) -> Control:
    """What the guidance fields ask for.

    Raises:
        ControlKitError: It cannot be had.
    """
    image = pictures.read(guide.image, f"{name}: image")
    mask = pictures.read(guide.mask, f"{name}: mask")
    phi: Any
    wanted: Any = image
    if guide.function == "color":
        phi = guidance.color(mask=mask)
        wanted = guide.color if image is None else image
    elif guide.function == "edges":
        phi = guidance.edges()
    else:
        phi = guidance.region(torch.ones(1, 1, 8, 8) if mask is None else mask)
    if wanted is None:
        raise ParameterError(f"{name}: image", found="nothing", expected=f"a picture for {guide.function}")
    return Guidance(
        phi,
        wanted,
        scale=guide.strength,
        start=guide.start,
        end=guide.end,
        max_norm=guide.max_norm or None,
        normalize=guide.normalize,
        through_unet=guide.through_unet,
        name=f"guidance {guide.function}",
    )


def _size(image: Any) -> tuple[int, int]:
    """Width and height of a picture, or of the first of several."""
    first: Any = cast("list[Any]", image)[0] if isinstance(image, list | tuple) else image
    shape: Any = getattr(first, "shape", None)
    width, height = first.size if shape is None else (shape[1], shape[0])
    return int(width), int(height)
