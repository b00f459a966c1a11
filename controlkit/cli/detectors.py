"""``controlkit detectors``: what can turn a photograph into a map."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from controlkit.cli.console import emit_json, stdout, table

if TYPE_CHECKING:
    from controlkit.preprocessors import DetectorInfo, OptionInfo


def detectors(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON, with ranges.")] = False,
) -> None:
    """List the detectors, their options, what each needs, and what of that is missing here.

    Examples:

    - `controlkit detectors`
    - `controlkit detectors --json`
    """
    import controlkit as ck
    from controlkit.batch.versions import missing_for

    found = ck.detectors()
    missing = {info.name: missing_for(info) for info in found}
    if as_json:
        emit_json([{**asdict(info), "missing": missing[info.name]} for info in found])
        return
    rows = [
        (info.name, info.family, _needs(info), ", ".join(missing[info.name]) or "-", _options(info.options))
        for info in found
    ]
    table("name", "family", "needs", "missing", "options", rows=rows)
    commands = sorted({info.extra for info in found if missing[info.name]})
    if commands:
        stdout.print("\nFor what is missing:", markup=False)
    for extra in commands:
        stdout.print(f'  pip install "{extra}"', markup=False)


def _needs(info: DetectorInfo) -> str:
    parts = ["weights"] if info.needs_weights else []
    if info.extra:
        parts.append(info.extra)
    return ", ".join(parts)


def _options(options: tuple[OptionInfo, ...]) -> str:
    return ", ".join(f"{entry.name}={entry.default}" for entry in options)
