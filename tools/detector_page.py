"""Write the part of ``docs/detectors.md`` that lists the detectors, from their table; a test compares."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

from controlkit.preprocessors import DetectorInfo, OptionInfo, detectors
from controlkit.preprocessors.registry import BUILT_IN

PAGE = Path(__file__).resolve().parent.parent / "docs" / "detectors.md"
BEGIN, END = "## All of them\n", "## What a picture may be\n"
WIDTH = 118


def part() -> str:
    """Everything from `BEGIN` up to `END`: one table of all, then a section each."""
    infos = [info for info in detectors() if info.owner == "controlkit"]
    lines = [BEGIN, "| detector | for | its map | needs |", "| --- | --- | --- | --- |"]
    for info in infos:
        needs = ", ".join([*(["weights"] if info.needs_weights else []), info.extra]).strip(", ")
        lines.append(f"| [`{info.name}`](#{info.name}) | {info.family} | {info.meaning} | {needs} |")
    for info in infos:
        lines += ["", f"### {info.name}", "", *_section(info)]
    return "\n".join(lines) + "\n\n"


def _section(info: DetectorInfo) -> list[str]:
    kind = next(kind for kind in BUILT_IN if kind.name == info.name)
    body, _, source = inspect.cleandoc(kind.__doc__ or "").partition("\nSource:\n")
    paragraphs = [" ".join(each.split()) for each in body.strip().split("\n\n")]
    if source:
        paragraphs.append("Source: " + " ".join(source.split()))
    lines: list[str] = []
    if info.needs_weights:
        paragraphs.append(
            "No picture: its weights are downloaded when it is first used, and none are kept here."
        )
    else:
        lines += [f"![{info.name}: what it is given, and its map](images/detectors/{info.name}.jpg)", ""]
    for paragraph in paragraphs:
        lines += [*textwrap.wrap(re.sub(r"``(.+?)``", r"`\1`", paragraph), WIDTH, break_on_hyphens=False), ""]
    if info.options:
        lines += ["| option | default | range | meaning |", "| --- | --- | --- | --- |"]
        lines += [*map(_row, info.options), ""]
    return lines[:-1]


def _row(option: OptionInfo) -> str:
    if option.choices:
        extent = ", ".join(f"`{choice}`" for choice in option.choices)
    elif option.default is None:
        extent = "a picture"
    elif isinstance(option.default, bool):
        extent = "yes or no"
    elif isinstance(option.default, str):
        extent = "text"
    else:
        extent = f"{option.low:.10g} to {option.high:.10g}"
        extent += f" in steps of {option.step:g}" if option.step else ""
        extent += f" {option.unit}" if option.unit else ""
    return f"| `{option.name}` | `{option.default!r}` | {extent} | {option.meaning} |"


if __name__ == "__main__":
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + part() + END + after)
    print(PAGE)
