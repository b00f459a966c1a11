"""``controlkit detectors``: what can turn a photograph into a map."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from controlkit.cli.console import emit_json, table

if TYPE_CHECKING:
    from controlkit.preprocessors import DetectorInfo, OptionInfo


def detectors(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON, with ranges.")] = False,
) -> None:
    """List the detectors, their options, and what each needs.

    Examples:

    - `controlkit detectors`
    - `controlkit detectors --json`
    """
    import controlkit as ck

    found = ck.detectors()
    if as_json:
        emit_json([asdict(info) for info in found])
        return
    rows = [(info.name, info.family, _needs(info), _options(info.options)) for info in found]
    table("name", "family", "needs", "options", rows=rows)


def _needs(info: DetectorInfo) -> str:
    parts = ["weights"] if info.needs_weights else []
    if info.extra:
        parts.append(info.extra)
    return ", ".join(parts)


def _options(options: tuple[OptionInfo, ...]) -> str:
    return ", ".join(f"{entry.name}={entry.default}" for entry in options)
