"""``controlkit inspect``: what a weight file is, without loading it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from controlkit.cli.console import emit_json, table


def inspect(
    source: Annotated[str, typer.Argument(help="A file, a folder in diffusers layout, or a hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a checkpoint is: its kind, base model, layout, size and precision.

    Examples:

    - `controlkit inspect control_v11p_sd15_canny.safetensors`
    - `controlkit inspect OWNER/NAME --json`
    """
    import controlkit as ck

    values = asdict(ck.inspect(source))
    if as_json:
        emit_json(values)
        return
    rows = [(key, _shown(value)) for key, value in values.items() if value not in (None, "", {}, [], ())]
    table("", "", rows=rows)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
