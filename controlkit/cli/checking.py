"""``controlkit check-map``: can this picture be a map for that condition?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from controlkit.cli.console import emit_json, stdout


def check_map(
    files: Annotated[list[Path], typer.Argument(help="Control maps.")],
    condition: Annotated[
        str, typer.Option("--condition", "-c", help="What they are for, such as canny, depth, seg, openpose.")
    ],
    palette: Annotated[
        str | None, typer.Option(help="For label maps: ade20k, coco or embedded. [default: any of them]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Say whether pictures can be maps of a condition, and if not, what is wrong and what to do.

    Examples:

    - `controlkit check-map edges.png --condition canny`
    - `controlkit check-map maps/*.png --condition depth --json`
    """
    import controlkit as ck

    found = [(str(file), ck.check_map(ck.open_image(file), condition, palette=palette)) for file in files]
    if as_json:
        emit_json([{"file": file, "ok": check.ok, **asdict(check)} for file, check in found])
        return
    for file, check in found:
        stdout.print(f"{file}: {check}", markup=False)
