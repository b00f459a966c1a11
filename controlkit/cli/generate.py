"""``controlkit generate``: pictures from a prompt and controls, or from a recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlkit.cli.console import emit_json, output_path, parse_size, progress, stderr, stdout
from controlkit.errors import ParameterError

if TYPE_CHECKING:
    from controlkit.cli.controls import Sources
    from controlkit.recipes import InitRecipe, Recipe, Result

_CONTROL_HELP = (
    "NAME=IMAGE[,KEY=VALUE,...]; may be repeated. NAME: an embedded model, a file, a folder, a hub id. "
    "Keys: detect, detect.OPTION, scale, start, end, mode, mask, resize, blocks, channel_order. "
    "Without detect the image already is a map. A scale may change: scale=0:1/0.5:0.2."
)


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="embedded, a folder in diffusers layout, a whole model in one file, or a hub id. "
            "[default: embedded]"
        ),
    ] = None,
    model_config: Annotated[
        str | None,
        typer.Option(
            help="Configs and tokenizer of a model in one file: a folder in diffusers layout, or a hub id."
        ),
    ] = None,
    control: Annotated[list[str] | None, typer.Option("--control", "-c", help=_CONTROL_HELP)] = None,
    negative: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    seed: Annotated[int | None, typer.Option(help="Picture k is made from seed + k. [default: 0]")] = None,
    images: Annotated[int | None, typer.Option("--images", "-n", help="How many. [default: 1]")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: 20]")] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels, 512 or 768x512 (width x height). [default: the model's own]")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale. [default: 3]")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="A picture to start from. It takes the size of the run.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of it becomes new, above 0 to 1: the share of steps run. [default: 0.8]"),
    ] = None,
    inpaint_mask: Annotated[
        Path | None,
        typer.Option(help="What of it is drawn anew: white in a picture of its size. Black is kept."),
    ] = None,
    mask_blur: Annotated[
        float | None, typer.Option(help="Pixels over which the edge of the mask fades. [default: 4]")
    ] = None,
    image_resize: Annotated[
        str | None, typer.Option(help="A picture of another shape: stretch, crop or pad. [default: stretch]")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Class name in diffusers. [default: the model's own]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe, or a picture made here; other options then change it.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder of local weights that a recipe names by file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A PNG file or a folder. [default: picture.png]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files; otherwise a free name is taken.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print paths, seeds and reports as JSON.")] = False,
) -> None:
    """Draw pictures. Each PNG carries its recipe, from which the same picture can be made again.

    Examples:

    - `controlkit generate "a red cube on a sand floor" --seed 7`
    - `controlkit generate "a red cube" -c controlnet-canny=photo.jpg,detect=canny,scale=0.9`
    - `controlkit generate "a house" --model OWNER/NAME -c OWNER/CONTROL=edges.png,end=0.8 --size 512`
    - `controlkit generate "a blue cube" --image photo.png --strength 0.6`
    - `controlkit generate "a blue cube" --image photo.png --inpaint-mask mask.png --strength 1`
    - `controlkit generate --recipe picture.png --seed 8 --out again.png`
    """
    from controlkit.cli.controls import Sources

    sources = Sources()
    pixels = parse_size(size)
    given: dict[str, Any] = {
        "prompt": prompt,
        "model": _model(model, model_config, dtype, recipe, sources),
        "controls": _controls(control, sources),
        "negative_prompt": negative,
        "seed": seed,
        "images": images,
        "steps": steps,
        "width": pixels[0] if pixels else None,
        "height": pixels[1] if pixels else None,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "init": _init(image, inpaint_mask, strength, mask_blur, image_resize),
    }
    wanted = _recipe(recipe, {key: value for key, value in given.items() if value is not None})
    target = output_path(out, "picture.png")
    if target.suffix.lower() != ".png":
        raise ParameterError("--out", found=target.name, expected="a name that ends in .png, or a folder")
    _run(wanted, sources, target, models=models, force=force, as_json=as_json)


def _model(
    model: str | None, config: str | None, dtype: str | None, recipe: Path | None, sources: Sources
) -> dict[str, Any] | None:
    if model is None and config is None and dtype is None:
        return None
    if model is None and (recipe is not None or config is not None):
        name = "--dtype" if config is None else "--model-config"
        raise ParameterError(name, found="no --model", expected="--model beside it")
    source = "embedded:base" if model in (None, "embedded") else sources.of(str(model), "--model")
    given = None if config is None else sources.of(config, "--model-config")
    return {"source": source, "dtype": dtype, "config": given}


def _controls(texts: list[str] | None, sources: Sources) -> list[dict[str, Any]] | None:
    from controlkit.cli.controls import parse_control

    return [parse_control(text, sources) for text in texts] if texts else None


def _init(
    image: Path | None, mask: Path | None, strength: float | None, blur: float | None, resize: str | None
) -> dict[str, Any] | None:
    """What is said about the picture to start from; None: nothing."""
    from controlkit.images import open_image

    given: dict[str, Any] = {"strength": strength, "blur": blur, "resize": resize}
    for name, path in {"image": image, "mask": mask}.items():
        given[name] = None if path is None else open_image(path)
    return {name: value for name, value in given.items() if value is not None} or None


def _recipe(path: Path | None, given: dict[str, Any]) -> Recipe:
    from controlkit.recipes import Recipe

    if path is None:
        if "prompt" not in given:
            raise ParameterError("PROMPT", found="nothing", expected="what to draw, or --recipe")
        return Recipe(**_whole(given, None))
    loaded = Recipe.load(path)
    given = _whole(given, loaded.init)
    return Recipe.load({**loaded.model_dump(), **given}, base=loaded.base) if given else loaded


def _whole(given: dict[str, Any], before: InitRecipe | None) -> dict[str, Any]:
    """The options with those of a picture to start from laid over the recipe's own."""
    if "init" not in given:
        return given
    known = before.model_dump() if before is not None else {}
    if "image" in given["init"]:  # a mask belongs to its picture
        known.pop("mask", None)
    init = known | given["init"]
    if "image" not in init:
        flags = {"mask": "--inpaint-mask", "blur": "--mask-blur", "resize": "--image-resize"}
        name = next(iter(given["init"]))
        raise ParameterError(
            flags.get(name, f"--{name}"), found="no --image", expected="the picture to start from as well"
        )
    return given | {"init": init}


def _run(
    recipe: Recipe, sources: Sources, target: Path, *, models: Path | None, force: bool, as_json: bool
) -> None:
    from controlkit.recipes import png_bytes, results, write

    written: list[tuple[Path, Result]] = []
    with progress("drawing", recipe.images * recipe.run_steps) as advance:

        def step(number: int, done: int, steps: int) -> None:
            advance(number * steps + done)

        for result in results(recipe, models=models, known=sources.known, progress=step):
            count = len(written) + 1
            path = target if count == 1 else target.with_name(f"{target.stem}-{count}{target.suffix}")
            content = png_bytes(result.image, result.recipe)
            path = write(path if force else target, content, force=force, number=not force)
            written.append((path, result))
            if not as_json:
                stdout.print(str(path), markup=False)
    if as_json:
        from controlkit.evaluation.scoring import Scorer
        from controlkit.recipes import Files

        scorer = Scorer(Files(recipe.base, models, sources.known))
        emit_json(
            [
                {
                    "path": str(path),
                    "seed": result.recipe.seed,
                    "report": [asdict(row) for row in result.report.rows],
                    "adherence": scorer.scores(result.recipe, result.image),
                }
                for path, result in written
            ]
        )
    elif recipe.controls and written:
        stderr.print(str(written[-1][1].report), markup=False)
