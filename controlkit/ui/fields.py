"""What is set on the page, and the recipe that it means; and back, so that a recipe fills the page.

What the page has no field for (digests, options of schedulers, …) is kept beside the fields as ``rest``, so
that a recipe that was put on the page comes back as it was.
"""

from __future__ import annotations

import json
from typing import Any

from PIL import Image

from controlkit.cli.controls import is_hub
from controlkit.errors import ParameterError
from controlkit.recipes import ControlRecipe, GuidanceRecipe, InitRecipe, Picture, Recipe, encode
from controlkit.recipes.guides import BUILT_IN
from controlkit.ui.looking import size_of
from controlkit.ui.places import Places
from controlkit.ui.settings import GUIDES, NO_DETECTOR, NO_SCHEDULER, UNITS, Guide, Page, Start, Unit


def source_of(text: str, places: Places, what: str) -> str:
    """The source that a text means: a source, a path below the folder of models, or a hub id.

    Raises:
        ParameterError: Nothing.
    """
    text = (text or "").strip()
    if not text:
        raise ParameterError(what, found="nothing", expected="a name from the list, a file, or a hub id")
    if text.partition(":")[0] in ("embedded", "hub", "file", "plugin"):
        return text
    models = places.models
    if models is not None:
        text = text.removeprefix(f"{models}/")
    below = models is not None and (models / text).exists()
    return f"hub:{text}" if is_hub(text) and not below else f"file:{text}"


def run_size(page: Page, places: Places) -> tuple[int, int]:
    """Width and height of the run, in pixels.

    Raises:
        ControlKitError: No such model.
    """
    own = size_of(source_of(page.model, places, "model"), places)
    return int(page.width) or own[0], int(page.height) or own[1]


def recipe_of(page: Page, places: Places) -> Recipe:
    """The recipe that the page means.

    Raises:
        ControlKitError: Something on it cannot be; the message names the control by its number.
    """
    size = run_size(page, places)
    controls: list[dict[str, Any]] = [
        control_of(unit, number, size, places) for number, unit in enumerate(page.units, 1) if unit.use
    ]
    controls += [guidance_of(guide, number) for number, guide in enumerate(page.guides, 1) if guide.use]
    rest = dict(page.rest)
    source = source_of(page.model, places, "model")
    model = rest.pop("model", {})
    scheduler = rest.pop("scheduler", {})
    given: dict[str, Any] = {
        "prompt": page.prompt,
        "negative_prompt": page.negative,
        "model": {**model, "source": source} if model.get("source") == source else source,
        "seed": _whole(page.seed, "seed"),
        "steps": _whole(page.steps, "steps"),
        "width": _whole(page.width, "width") or None,
        "height": _whole(page.height, "height") or None,
        "guidance_scale": float(page.guidance_scale),
        "images": _whole(page.images, "images"),
        "controls": controls,
        "init": init_of(page.start),
    }
    if page.scheduler and page.scheduler != NO_SCHEDULER:
        given["scheduler"] = scheduler if scheduler.get("name") == page.scheduler else page.scheduler
    return places.vetted(Recipe(**given))


def init_of(start: Start) -> dict[str, Any] | None:
    """The picture to start from, as the arguments of an `InitRecipe`; None where there is none.

    Raises:
        ParameterError: A margin that is no number.
    """
    if start.image is None:
        return None
    mask = start.mask
    if mask is not None and mask.size != start.image.size:  # a canvas may have another size than its ground
        mask = mask.resize(start.image.size, Image.Resampling.BOX)
    return {
        **start.rest,
        "image": Picture(data=encode(start.image)),
        "strength": float(start.strength),
        "mask": None if mask is None else Picture(data=encode(mask)),
        "blur": float(start.blur),
        "margin": _whole(start.margin, "start: margin")
        if mask is not None and start.margin.strip()
        else None,
        "resize": start.resize,
    }


def control_of(unit: Unit, number: int, size: tuple[int, int], places: Places) -> dict[str, Any]:
    """The control that a unit means, as the arguments of a `ControlRecipe`.

    Raises:
        ParameterError: It has no picture, or a value that cannot be read.
    """
    what = f"control {number}"
    if unit.image is None:
        raise ParameterError(
            f"{what}: image", found="nothing", expected="a photograph or a map", fix="Upload one."
        )
    rest = dict(unit.rest)
    source = source_of(unit.module, places, f"{what}: module")
    module = rest.pop("module", {})
    options = dict(unit.options)
    detect = None if unit.detector in ("", None, NO_DETECTOR) else unit.detector
    if detect and unit.fit:
        options["size"] = min(size)
    return {
        **rest,
        "module": {**module, "source": source} if module.get("source") == source else source,
        "image": Picture(data=encode(unit.image)),
        "detect": detect,
        "detect_options": options if detect and options else None,
        "scale": _points(unit.points, what) or float(unit.scale),
        "start": float(unit.start),
        "end": float(unit.end),
        "mode": unit.mode,
        "block_scales": _numbers(unit.blocks, what),
        "mask": None if unit.mask is None else Picture(data=encode(unit.mask)),
        "resize": unit.resize,
    }


def guidance_of(guide: Guide, number: int) -> dict[str, Any]:
    """The guidance that is set, as the arguments of a `GuidanceRecipe`.

    Raises:
        ParameterError: Options that are no JSON object.
    """
    what = f"guidance {number}"
    options: Any = {}
    if guide.options.strip():
        try:
            options = json.loads(guide.options)
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ParameterError(f"{what}: options", found=f"{guide.options!r:.60}", expected="a JSON object")
    if guide.where is not None:
        options = {**options, "mask": {"data": encode(guide.where)}}
    given: dict[str, Any] = {
        **guide.rest,
        "guidance": guide.kind,
        "options": options,
        "scale": guide.rest.get("scale", float(guide.scale)),
        "start": float(guide.start),
        "end": float(guide.end),
    }
    if guide.image is not None:
        given["image"] = Picture(data=encode(guide.image))
    elif guide.target.strip():
        given["target"] = guide.target if guide.kind == "text" else _target(guide.target)
    return given


def page_of(recipe: Recipe, places: Places) -> Page:
    """The page that means this recipe.

    Raises:
        ParameterError: More controls than the page has room for.
        ControlKitError: A picture in it cannot be read.
    """
    controls = [part for part in recipe.controls if isinstance(part, ControlRecipe)]
    guides = [part for part in recipe.controls if isinstance(part, GuidanceRecipe)]
    if len(controls) > UNITS or len(guides) > GUIDES:
        raise ParameterError(
            "recipe",
            found=f"{len(controls)} controls and {len(guides)} guidance functions",
            expected=f"at most {UNITS} and {GUIDES}, which the page has room for",
            fix="Run it from the command line: controlkit generate --recipe.",
        )
    page = Page(
        prompt=recipe.prompt,
        negative=recipe.negative_prompt,
        model=recipe.model.source,
        scheduler=recipe.scheduler.name if recipe.scheduler else NO_SCHEDULER,
        steps=recipe.steps,
        seed=str(recipe.seed),
        width=recipe.width or 0,
        height=recipe.height or 0,
        guidance_scale=recipe.guidance_scale,
        images=recipe.images,
    )
    page.rest = {"model": _set(recipe.model)}
    if recipe.scheduler is not None:
        page.rest["scheduler"] = _set(recipe.scheduler)
    if recipe.init is not None:
        page.start = _start(recipe.init, places)
    size = run_size(page, places)
    for number, part in enumerate(controls):
        page.units[number] = _unit(part, size, places)
    for number, part in enumerate(guides):
        page.guides[number] = _guide(part, places)
    return page


def _start(part: InitRecipe, places: Places) -> Start:
    return Start(
        image=places.files.picture(part.image),
        strength=part.strength,
        mask=None if part.mask is None else places.files.picture(part.mask),
        blur=part.blur,
        margin="" if part.margin is None else str(part.margin),
        resize=part.resize,
        rest={} if part.keep else {"keep": False},
    )


def _unit(part: ControlRecipe, size: tuple[int, int], places: Places) -> Unit:
    options = dict(part.detect_options or {})
    fit = bool(part.detect) and options.get("size") == min(size)
    if fit:
        del options["size"]
    curve = isinstance(part.scale, tuple)
    shown = {"module", "image", "detect", "detect_options", "scale", "start", "end", "mode", "block_scales"}
    rest = part.model_dump(mode="json", exclude_defaults=True, exclude=shown | {"mask", "resize"})
    return Unit(
        use=True,
        module=part.module.source,
        image=places.files.picture(part.image),
        detector=part.detect or NO_DETECTOR,
        fit=fit,
        options=options,
        scale=1.0 if curve else float(part.scale),  # pyright: ignore[reportArgumentType]
        points=", ".join(f"{at!r}:{scale!r}" for at, scale in part.scale) if curve else "",  # pyright: ignore
        start=part.start,
        end=part.end,
        mode=part.mode,
        mask=None if part.mask is None else places.files.picture(part.mask),
        blocks=", ".join(map(repr, part.block_scales or ())),
        resize=part.resize,
        rest={**rest, "module": _set(part.module)},
    )


def _guide(part: GuidanceRecipe, places: Places) -> Guide:
    options = dict(part.options)
    where = options.pop("mask", None) if part.guidance in BUILT_IN else None
    shown = {"guidance", "options", "target", "image", "start", "end"}
    curve = isinstance(part.scale, tuple)
    rest = part.model_dump(mode="json", exclude_defaults=True, exclude=shown if curve else shown | {"scale"})
    target = part.target
    return Guide(
        use=True,
        kind=part.guidance,
        target="" if target is None else target if isinstance(target, str) else json.dumps(target),
        image=None if part.image is None else places.files.picture(part.image),
        where=places.files.picture(Picture.model_validate(where)) if isinstance(where, dict) else None,
        scale=1.0 if curve else float(part.scale),  # pyright: ignore[reportArgumentType]
        start=part.start,
        end=part.end,
        options=json.dumps(options) if options else "",
        rest=rest,
    )


def _set(part: Any) -> dict[str, Any]:
    """What was set in a part of a recipe."""
    values = part.model_dump(mode="json", exclude_defaults=True)
    return {"source": part.source, **values} if hasattr(part, "source") else values


def _points(text: str, what: str) -> list[tuple[float, float]] | None:
    if not (text or "").strip():
        return None
    try:
        pairs = [part.split(":") for part in text.replace("/", ",").split(",") if part.strip()]
        return [(float(at), float(scale)) for at, scale in pairs]
    except ValueError:
        raise ParameterError(
            f"{what}: curve", found=f"{text!r:.60}", expected="points such as 0:1, 0.5:0.2"
        ) from None


def _numbers(text: str, what: str) -> list[float] | None:
    if not (text or "").strip():
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ParameterError(
            f"{what}: block scales", found=f"{text!r:.60}", expected="numbers with commas between"
        ) from None


def _target(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | list) and not isinstance(value, bool) else text


def _whole(value: float | str | None, name: str) -> int:
    text = str(0 if value in ("", None) else value).strip()
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if not number.is_integer():
        raise ParameterError(name, found=f"{value!r:.40}", expected="a whole number")
    return int(number)
