"""docs/detectors.md agrees with the code: every detector, option, default and range; its example works."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from controlkit.preprocessors import detectors, preprocess

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "detectors.md").read_text()
OURS = [info for info in detectors() if info.owner == "controlkit"]


def test_the_page_is_what_the_table_says() -> None:
    script = runpy.run_path(str(ROOT / "tools" / "detector_page.py"))
    begin, end = script["BEGIN"], script["END"]
    listed = begin + PAGE.split(begin)[1].split(end)[0]
    assert listed == script["part"](), "run tools/detector_page.py"


def test_every_detector_has_a_paragraph_and_a_source_or_needs_none() -> None:
    for info in OURS:
        section = PAGE.split(f"### {info.name}\n")[1].split("\n### ")[0].split("\n## ")[0]
        assert len(section.split("| option")[0].split()) > 12, info.name
        assert "Source: " in section or info.name == "invert", info.name


def test_the_sheet_of_all_detectors_is_shown() -> None:
    assert "(images/detectors.png)" in PAGE
    assert "(docs/images/detectors.png)" in (ROOT / "README.md").read_text()
    with Image.open(ROOT / "docs" / "images" / "detectors.png") as sheet:
        assert sheet.width > 1000


def test_the_page_lists_no_detector_that_is_not_there() -> None:
    assert re.findall(r"^### ([\w-]+)$", PAGE, re.MULTILINE) == [info.name for info in OURS]


def test_the_example_of_a_detector_of_ones_own_works() -> None:
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Posterize" in block
    )
    names: dict[str, type] = {}
    exec(compile(code, "docs/detectors.md", "exec", dont_inherit=True), names)
    result = preprocess(Image.new("RGB", (2, 2), (200, 100, 50)), names["Posterize"](levels=2))
    assert np.asarray(result)[0, 0].tolist() == [128, 0, 0]
