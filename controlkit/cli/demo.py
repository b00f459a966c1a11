"""``controlkit demo``: the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controlkit.cli.console import emit_json, output_path, progress, stdout, table
from controlkit.errors import ParameterError

if TYPE_CHECKING:
    from controlkit.demo import DemoRow


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A PNG file or a folder. [default: out/demo.png]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Picture k is made from seed + k.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 20,
    parts: Annotated[
        Path | None, typer.Option(help="Also write every picture and map by itself into this folder.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file; otherwise a free name is taken.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path and the scores as JSON.")] = False,
) -> None:
    """Draw one sheet that shows what control does, with the embedded models: no network, about a minute.

    Examples:

    - `controlkit demo`
    - `controlkit demo --out sheet.png --seed 8`
    """
    from controlkit.demo import contact_sheet, draw, sources
    from controlkit.demo.drawing import total_steps
    from controlkit.recipes import png_bytes, write

    target = output_path(out, "demo.png") if out is not None else Path("out/demo.png")
    if target.suffix.lower() != ".png":
        raise ParameterError("--out", found=target.name, expected="a name that ends in .png, or a folder")
    followed = sources()
    with progress("drawing", total_steps(followed, steps)) as advance:
        rows = list(draw(followed, seed=seed, steps=steps, progress=advance))
    sheet = contact_sheet(rows)
    path = write(target, png_bytes(sheet, None), force=force, number=not force)
    if parts is not None:
        _write_parts(parts, rows, force)
    if as_json:
        emit_json({"sheet": str(path), "scores": [asdict(row.score) for row in rows]})
        return
    table(
        "",
        "measure",
        "with control",
        "without",
        rows=[
            (row.source.title, row.score.name, f"{row.score.controlled:.2f}", f"{row.score.uncontrolled:.2f}")
            for row in rows
        ],
    )
    stdout.print(f"The sheet is {path}", markup=False)


def _write_parts(folder: Path, rows: Sequence[DemoRow], force: bool) -> None:
    from controlkit.recipes import Recipe, png_bytes, write

    for row in rows:
        kind = row.source.module
        write(
            folder / f"{kind}-source.png", png_bytes(row.source.picture, None), force=force, number=not force
        )
        write(
            folder / f"{kind}-map.png", png_bytes(row.source.control_map, None), force=force, number=not force
        )
        for label, pictures in (("with", row.controlled), ("without", row.uncontrolled)):
            for count, picture in enumerate(pictures, 1):
                content = png_bytes(picture, Recipe.load(picture))
                write(folder / f"{kind}-{label}-{count}.png", content, force=force, number=not force)
