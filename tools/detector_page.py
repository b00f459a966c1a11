"""Write the part of ``docs/detectors.md`` that lists the detectors, from their table; a test compares.

What the pictures of detectors with weights show is said in their text (`KEY`), by those who drew them.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from pathlib import Path

from PIL import Image

from controlkit.preprocessors import DetectorInfo, OptionInfo, detectors
from controlkit.preprocessors.registry import BUILT_IN

PAGE = Path(__file__).resolve().parent.parent / "docs" / "detectors.md"
BEGIN, END = "## All of them\n", "## What a picture may be\n"
PICTURES = PAGE.parent / "images" / "detectors"
WIDTH = 118
KEY = "controlkit-picture"
"""Of the text in a PNG that says, as JSON, what it ``shows`` ("truth" or "answer"), of which ``truth`` or by
which ``weights``, and of which picture beside it (``given``)."""
HOW = """
The pictures below show what a detector is given, and its map. Weights are downloaded when a detector is first
used, and most come with no package, so pictures of detectors with weights are of two kinds; the line below
each says which. Most show **what the map looks like, not what the network finds**: in place of the network's
answer comes what is true of a rendered scene, or points placed on a photograph, and from there the
detector's own code draws (`python tools/detector_formats.py`). Where weights are at hand,
`python tools/detector_sheet.py --weights` puts the networks' own maps in their place,
`--weights midas hed=models/ControlNetHED.pth` those of some; then `python tools/detector_page.py` says so
here.
"""


def part() -> str:
    """Everything from `BEGIN` up to `END`: one table of all, then a section each."""
    infos = [info for info in detectors() if info.owner == "controlkit"]
    lines = [BEGIN, HOW.strip(), ""]
    lines += ["| detector | for | its map | needs |", "| --- | --- | --- | --- |"]
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
        lines += _pictures(info.name)
    else:
        lines += [f"![{info.name}: what it is given, and its map](images/detectors/{info.name}.jpg)", ""]
    for paragraph in paragraphs:
        lines += [*textwrap.wrap(re.sub(r"``(.+?)``", r"`\1`", paragraph), WIDTH, break_on_hyphens=False), ""]
    if info.options:
        lines += ["| option | default | range | meaning |", "| --- | --- | --- | --- |"]
        lines += [*map(_row, info.options), ""]
    return lines[:-1]


def about(picture: Path) -> dict[str, str]:
    """What a picture of a detector with weights says of itself; empty where there is none."""
    if not picture.is_file():
        return {}
    with Image.open(picture) as opened:
        return json.loads(opened.info.get(KEY, "{}"))


def _pictures(name: str) -> list[str]:
    """What it is given, its map, and which kind of map that is."""
    told = about(PICTURES / f"{name}.png")
    if told["shows"] == "truth":
        alt = "what its map looks like"
        of = "of the rendered scene" if "scene" in told["given"] else "on the photograph"
        caption = (
            f"What its map looks like: {told['truth']} {of}, in place of its network's answer, "
            f"through {name}'s own code. It is not what the network finds."
        )
    else:
        alt, caption = "its map", f"Its own map of the photograph, with the network of {told['weights']}."
    shown = ((told["given"], "what it is given"), (f"{name}.png", alt))
    pictures = " ".join(f"![{name}: {what}](images/detectors/{file})" for file, what in shown)
    return [pictures, "", *textwrap.wrap(f"*{caption}*", WIDTH, break_on_hyphens=False), ""]


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
