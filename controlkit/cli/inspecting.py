"""``controlkit inspect``: what a weight file is, without loading it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from controlkit.cli.console import emit_json, table


def inspect(
    source: Annotated[str, typer.Argument(help="A file, a folder in diffusers layout, or a hub id.")],
    subfolder: Annotated[str | None, typer.Option(help="Of the folder or repository.")] = None,
    weight_name: Annotated[str | None, typer.Option(help="Of the weight file in it.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a checkpoint is: its kind, base model, layout, size and precision.

    Of safetensors files the header alone is read, of pickles what they hold is told without running them.

    Examples:

    - `controlkit inspect control_v11p_sd15_canny.safetensors`
    - `controlkit inspect OWNER/NAME --json`
    """
    import controlkit as ck

    found = ck.inspect(source, subfolder=subfolder, weight_name=weight_name, revision=revision)
    values = asdict(found)
    if as_json:
        emit_json(values)
        return
    rows = [(key, _shown(value)) for key, value in values.items() if value not in (None, "", {}, [], ())]
    table("", "", rows=rows)


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "; ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
