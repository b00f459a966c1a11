"""docs/detectors.md agrees with the code: every detector, option, default and range; its example works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlkit.preprocessors import OptionInfo, detectors, preprocess

PAGE = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text()
OURS = [info for info in detectors() if info.owner == "controlkit"]


def row(option: OptionInfo) -> str:
    if option.choices:
        extent = ", ".join(f"`{choice}`" for choice in option.choices)
    elif isinstance(option.default, bool):
        extent = "yes or no"
    else:
        extent = f"{option.low:.10g} to {option.high:.10g}"
        extent += f" in steps of {option.step:g}" if option.step else ""
        extent += f" {option.unit}" if option.unit else ""
    return f"| `{option.name}` | `{option.default!r}` | {extent} | {option.meaning} |"


@pytest.mark.parametrize("name", [info.name for info in OURS])
def test_the_page_agrees_with_the_code(name: str) -> None:
    info = next(one for one in OURS if one.name == name)
    assert f"| [`{name}`](#{name}) | {info.family} | {info.meaning} |" in PAGE
    section = PAGE.split(f"### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == [
        row(option) for option in info.options
    ]


def test_the_page_lists_no_detector_that_is_not_there() -> None:
    assert re.findall(r"^### (\w+)$", PAGE, re.MULTILINE) == [info.name for info in OURS]


def test_the_example_of_a_detector_of_ones_own_works() -> None:
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Posterize" in block
    )
    names: dict[str, type] = {}
    exec(compile(code, "docs/detectors.md", "exec", dont_inherit=True), names)
    result = preprocess(Image.new("RGB", (2, 2), (200, 100, 50)), names["Posterize"](levels=2))
    assert np.asarray(result)[0, 0].tolist() == [128, 0, 0]
