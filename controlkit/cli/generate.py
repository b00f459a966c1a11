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
    from controlkit.recipes import Recipe, Result

_CONTROL_HELP = (
    "NAME=IMAGE[,KEY=VALUE,...]; may be repeated. NAME: an embedded model, a file, a folder, a hub id. "
    "Keys: detect, detect.OPTION, scale, start, end, mode, mask, resize, blocks, channel_order. "
    "Without detect the image already is a map. A scale may change: scale=0:1/0.5:0.2."
)


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(help="embedded, a folder in diffusers layout, or a hub id. [default: embedded]"),
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
    - `controlkit generate --recipe picture.png --seed 8 --out again.png`
    """
    from controlkit.cli.controls import Sources

    sources = Sources()
    pixels = parse_size(size)
    given: dict[str, Any] = {
        "prompt": prompt,
        "model": None if model is None and dtype is None else _model(model, dtype, recipe, sources),
        "controls": _controls(control, sources),
        "negative_prompt": negative,
        "seed": seed,
        "images": images,
        "steps": steps,
        "width": pixels[0] if pixels else None,
        "height": pixels[1] if pixels else None,
        "guidance_scale": guidance,
        "scheduler": scheduler,
    }
    wanted = _recipe(recipe, {key: value for key, value in given.items() if value is not None})
    target = output_path(out, "picture.png")
    if target.suffix.lower() != ".png":
        raise ParameterError("--out", found=target.name, expected="a name that ends in .png, or a folder")
    _run(wanted, sources, target, models=models, force=force, as_json=as_json)


def _model(model: str | None, dtype: str | None, recipe: Path | None, sources: Sources) -> dict[str, Any]:
    if model is None and recipe is not None:
        raise ParameterError("--dtype", found="--recipe as well", expected="--model beside it")
    source = "embedded:base" if model in (None, "embedded") else sources.of(str(model), "--model")
    return {"source": source, "dtype": dtype}


def _controls(texts: list[str] | None, sources: Sources) -> list[dict[str, Any]] | None:
    from controlkit.cli.controls import parse_control

    return [parse_control(text, sources) for text in texts] if texts else None


def _recipe(path: Path | None, given: dict[str, Any]) -> Recipe:
    from controlkit.recipes import Recipe

    if path is None:
        if "prompt" not in given:
            raise ParameterError("PROMPT", found="nothing", expected="what to draw, or --recipe")
        return Recipe(**given)
    loaded = Recipe.load(path)
    return Recipe.load({**loaded.model_dump(), **given}, base=loaded.base) if given else loaded


def _run(
    recipe: Recipe, sources: Sources, target: Path, *, models: Path | None, force: bool, as_json: bool
) -> None:
    from controlkit.recipes import png_bytes, results, write

    written: list[tuple[Path, Result]] = []
    with progress("drawing", recipe.images * recipe.steps) as advance:

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
        emit_json(
            [
                {
                    "path": str(path),
                    "seed": result.recipe.seed,
                    "report": [asdict(row) for row in result.report.rows],
                }
                for path, result in written
            ]
        )
    elif recipe.controls and written:
        stderr.print(str(written[-1][1].report), markup=False)
