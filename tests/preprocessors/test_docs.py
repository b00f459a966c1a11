"""docs/detectors.md agrees with the code: every detector, option, default and range; its example works."""

from __future__ import annotations

import importlib
import json
import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlkit.maps.palettes import PALETTES
from controlkit.preprocessors import build, detectors, preprocess
from controlkit.preprocessors.labels import NAMES
from tests.preprocessors.auxiliary.conftest import Written, written

__all__ = ["written"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "detectors.md").read_text()
OURS = [info for info in detectors() if info.owner == "controlkit"]
PICTURES = ROOT / "docs" / "images" / "detectors"
KEY = "controlkit-picture"


def section(name: str) -> str:
    return PAGE.split(f"### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]


def told(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        return json.loads(picture.info[KEY])


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of ``tools/``."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


def test_the_page_is_what_the_table_says() -> None:
    script = runpy.run_path(str(ROOT / "tools" / "detector_page.py"))
    begin, end = script["BEGIN"], script["END"]
    listed = begin + PAGE.split(begin)[1].split(end)[0]
    assert listed == script["part"](), "run tools/detector_page.py"


def test_every_detector_has_a_paragraph_and_a_source_or_needs_none() -> None:
    for info in OURS:
        text = section(info.name)
        assert len(text.split("| option")[0].split()) > 12, info.name
        assert "Source: " in text or info.name == "invert", info.name


def test_every_detector_has_pictures_that_are_there_small_and_named_rightly() -> None:
    for info in OURS:
        shown = re.findall(r"!\[([\w-]+): [^\]]+\]\(([^)]+)\)", section(info.name))
        assert [name for name, _ in shown] == [info.name] * (1 + info.needs_weights)
        assert Path(shown[-1][1]).stem == info.name
        for _, file in shown:
            with Image.open(ROOT / "docs" / file) as picture:
                assert picture.height == 256
    assert sum(file.stat().st_size for file in PICTURES.iterdir()) < 1_200_000


def test_a_picture_that_no_network_made_says_so() -> None:
    for info in OURS:
        text = " ".join(section(info.name).split())
        says_truth, says_own = "It is not what the network finds.*" in text, "*Its own map of" in text
        if not info.needs_weights:
            assert not says_truth
            assert not says_own
            continue
        about = told(PICTURES / f"{info.name}.png")
        assert says_truth is (about["shows"] == "truth"), info.name
        assert says_own is (about["shows"] == "answer"), info.name
        assert about["truth" if says_truth else "weights"] in text
        assert about["given"] in text


CHEAP = ("pidinet", "anyline", "mlsd", "zoe", "normal-bae", "segformer", "vitpose")


@pytest.mark.parametrize("name", CHEAP)
def test_a_picture_is_what_the_code_makes_of_the_truth(name: str, tool: Any) -> None:
    pictures: ModuleType = tool("format_pictures.pictures")
    with Image.open(PICTURES / f"{name}.png") as kept:
        if told(PICTURES / f"{name}.png")["shows"] == "truth":
            made = pictures.small(pictures.map_of(name))
            assert made.mode == kept.mode
            off = np.abs(np.asarray(made, int) - np.asarray(kept, int))
            assert off.max() <= (1 if name in ("zoe", "normal-bae") else 0)  # rounding of what was computed


def test_the_truth_is_true(tool: Any) -> None:
    pictures: ModuleType = tool("format_pictures.pictures")
    truth = tool("format_pictures.still_life").still_life()
    assert truth.things.max() == 4
    assert np.allclose(np.linalg.norm(truth.normal, axis=2), 1, atol=1e-4)
    sphere = truth.things == 2
    down, across = (round(float(values.mean())) for values in np.nonzero(sphere))
    assert np.abs(truth.normal[down, across, :2]).max() < 0.15  # the middle of a ball faces the camera
    assert truth.distance[down, across] - truth.distance[sphere].min() < 0.02
    lines = np.asarray(pictures.map_of("mlsd").convert("L")) > 0
    near = np.zeros_like(lines)
    for i in (-1, 0, 1):
        for k in (-1, 0, 1):
            near |= np.roll(truth.outline > 0, (i, k), (0, 1))
    assert lines.sum() > 500
    assert near[lines].all()  # every straight line lies on an outline
    colours = np.asarray(pictures.map_of("upernet").convert("RGB"))
    for kind, label in enumerate(("floor", "box", "ball", "column", "tent")):
        number = next(i for i, names in enumerate(NAMES["ade20k"]) if label in names)
        inside = colours[truth.things == kind]
        assert (inside == np.asarray(PALETTES["ade20k"])[number]).all(axis=1).mean() > 0.98


def test_with_weights_at_hand_the_sheet_draws_the_networks_own_map(
    written: Written, tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written("5_model.pth") / "5_model.pth"
    sheet, page = tool("detector_sheet"), tool("detector_page")
    assert sheet.with_weights([f"teed={file}", "canny", f"hed={tmp_path / 'none.pth'}"], tmp_path) == 2
    errors = capsys.readouterr().err
    assert "canny" in errors
    assert "none.pth" in errors
    assert not (tmp_path / "hed.png").exists()
    made = tmp_path / "teed.png"
    assert page.about(made) == {"shows": "answer", "weights": file.name, "given": "given-photograph.jpg"}
    formats: ModuleType = tool("format_pictures.pictures")
    own = formats.small(build_map("teed", file, formats.photograph()))
    with Image.open(made) as kept:
        assert np.array_equal(np.asarray(kept), np.asarray(own))


def build_map(name: str, file: Path, photo: Image.Image) -> Image.Image:
    return preprocess(photo, build(name, weights=str(file)))


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
