"""Making the pictures of a recipe.

Picture ``k`` is made by itself, from seed ``seed + k``, so that each picture's own recipe (one picture, that
seed) makes it again to the bit: a batch of several would round differently.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import NotApplicable
from controlkit.recipes.building import Modules, control_of, pipeline_of, scheduler_of
from controlkit.recipes.files import CHUNK
from controlkit.recipes.guides import BUILT_IN, sealed_options
from controlkit.recipes.images import Files, Picture, encode
from controlkit.recipes.model import ControlRecipe, GuidanceRecipe, Recipe, SchedulerRecipe
from controlkit.recipes.rules import MAX_SEED
from controlkit.recipes.starting import Start, pipeline_from, start_of

if TYPE_CHECKING:
    from PIL import Image

    from controlkit.recipes.keeping import Keeper
    from controlkit.report import Report

Progress = Callable[[int, int, int], None]
"""Called after each step with the number of the picture, the steps done, and the steps of one picture."""

Watch = Callable[[Any], AbstractContextManager[Any]]
"""What to enter around each picture, made from the pipeline with the scheduler that the picture gets."""

_PACKAGES = ("controlkit", "torch", "diffusers", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class Result:
    """One picture.

    Args:
        image: The picture; its ``info`` carries the recipe too.
        recipe: The recipe of this picture alone, complete in itself: maps and photographs are embedded,
            weights are named with their digests, and no path leads anywhere.
        report: What each control did.
    """

    image: Image.Image
    recipe: Recipe
    report: Report


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path | Image.Image,
    pipeline: Any = None,
    *,
    models: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Image.Image]:
    """Make the pictures of a recipe.

    Args:
        recipe: A recipe, or whatever `Recipe.load` reads.
        pipeline: A diffusers pipeline to use in place of the recipe's model; left as it was.
        models: Folder of local weights, where ``file:`` sources are looked for first.
        progress: Called after each step with the number of the picture, steps done, steps of one picture.

    Returns:
        ``recipe.images`` pictures. Each carries its own recipe: ``Recipe.load(picture)`` reads it.

    Raises:
        RecipeError: Something that the recipe names is missing, or is not what it was.
        ParameterError: A value out of its range.

    Example:
        >>> pictures = ck.run({"prompt": "a red cube on a sand floor", "seed": 7})  # doctest: +SKIP
    """
    return [result.image for result in results(recipe, pipeline, models=models, progress=progress)]


def results(
    recipe: Recipe | Mapping[str, Any] | str | Path | Image.Image,
    pipeline: Any = None,
    *,
    models: str | Path | None = None,
    known: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
    watch: Watch | None = None,
) -> Iterator[Result]:
    """As `run`, one picture at a time, each with its own recipe and report.

    Args:
        recipe: As for `run`.
        pipeline: As for `run`.
        models: As for `run`.
        known: Paths of ``file:`` sources that lie elsewhere, by source.
        progress: As for `run`. What it raises ends the run, and the pipeline is as it was.
        keeper: Keeps pipeline and modules for the next recipe.
        watch: Called with the pipeline before each picture; what it returns is entered while it is made.
    """
    from controlkit.attaching import attach

    recipe = Recipe.load(recipe)
    files = Files(recipe.base, Path(models) if models is not None else None, known or {})
    load = pipeline_of if keeper is None else keeper.pipeline
    pipe = pipeline if pipeline is not None else load(recipe.model, files)
    if not hasattr(pipe, "scheduler"):
        raise NotApplicable("pipeline", found=type(pipe).__name__, expected="a diffusers pipeline")
    start = start_of(pipe, recipe, files)
    modules = Modules(files) if keeper is None else keeper.modules(_sources(recipe), files)
    controls = [control_of(part, modules, files) for part in recipe.controls]
    sealed = _sealed(recipe, modules, files, pipe if pipeline is not None else None)
    before, pipe = pipe.scheduler, pipeline_from(pipe, recipe.init)
    for number in range(recipe.images):
        one = sealed.model_copy(update={"seed": (recipe.seed + number) % (MAX_SEED + 1), "images": 1})
        scheduler = scheduler_of(before, recipe.scheduler)
        with (
            _scheduler(pipe, scheduler),
            nullcontext() if watch is None else watch(pipe),
            attach(pipe, *controls) as attached,
        ):
            image = _picture(pipe, one, number, progress, start)
            report = attached.report()
        width, height = image.size if start is None else start.picture.size
        one = one.model_copy(update={"width": width, "height": height})
        image.info[CHUNK] = one.to_json()
        yield Result(image, one, report)


def _sources(recipe: Recipe) -> dict[str, str]:
    """By the modules of a recipe, as JSON: their sources."""
    modules = [part.module for part in recipe.controls if isinstance(part, ControlRecipe)]
    return {module.model_dump_json(): module.source for module in modules}


@contextmanager
def _scheduler(pipe: Any, scheduler: Any) -> Iterator[None]:
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def _picture(
    pipe: Any, recipe: Recipe, number: int, progress: Progress | None, start: Start | None
) -> Image.Image:
    import torch

    arguments: dict[str, Any] = {
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt or None,
        "num_inference_steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
        "generator": torch.Generator("cpu").manual_seed(recipe.seed),
    }
    if start is not None:
        arguments |= start.arguments
    else:
        size = {"width": recipe.width, "height": recipe.height}
        arguments |= {name: value for name, value in size.items() if value is not None}
    if progress is not None:

        def after(_pipe: Any, index: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            progress(number, index + 1, recipe.run_steps)
            return kwargs

        arguments["callback_on_step_end"] = after
    made = pipe(**arguments).images[0]
    return made if start is None else start.finished(made)


def _sealed(recipe: Recipe, modules: Modules, files: Files, given: Any) -> Recipe:
    """The recipe complete in itself: nothing in it depends on a file beside it or names a place."""

    def picture(reference: Picture | None) -> Picture | None:
        if reference is None or reference.data is not None:
            return reference
        return Picture(data=encode(files.picture(reference)))

    parts: list[ControlRecipe | GuidanceRecipe] = []
    for part in recipe.controls:
        update: dict[str, Any] = {"image": picture(part.image), "mask": picture(part.mask)}
        if isinstance(part, GuidanceRecipe):
            if part.guidance in BUILT_IN:
                update["options"] = sealed_options(part, modules, picture)
        else:
            digest = getattr(modules.of(part.module), "digest", None) or part.module.digest
            update["module"] = part.module.model_copy(update={"digest": digest})
        parts.append(part.model_copy(update=update))
    update = {"controls": tuple(parts), "made_with": _versions()}
    if recipe.init is not None:
        own = {"image": picture(recipe.init.image), "mask": picture(recipe.init.mask)}
        update["init"] = recipe.init.model_copy(update=own)
    if given is not None:
        update |= _origin(given, recipe)
    return recipe.model_copy(update=update)


def _origin(pipe: Any, recipe: Recipe) -> dict[str, Any]:
    """What a pipeline that was given says about itself, without its place on this machine."""
    found: dict[str, Any] = {}
    name = str(getattr(getattr(pipe, "config", None), "_name_or_path", "") or "")
    if name and not recipe.model.source.startswith("embedded:"):
        local = Path(name).exists() or Path(name).is_absolute()
        source = f"file:{Path(name).name}" if local else f"hub:{name}"
        found["model"] = recipe.model.model_copy(update={"source": source})
    if recipe.scheduler is None:
        config = dict(pipe.scheduler.config)
        options = {key: value for key, value in config.items() if key[:1] != "_" and _plain(value)}
        found["scheduler"] = SchedulerRecipe(name=type(pipe.scheduler).__name__, options=options)
    return found


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
