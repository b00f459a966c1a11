"""Every example of the README runs as it is written, on tiny models in place of large ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit import embedded
from controlkit.cli import main
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("controlkit ")
]


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny random models under the names that the examples use, in an empty folder with two files."""
    import diffusers

    modules: dict[str, Any] = {"controlnet-canny": tiny.controlnet, "t2i-depth": tiny.t2i_adapter}
    downloads: dict[str, Any] = {
        "lllyasviel/control_v11p_sd15_canny": tiny.controlnet,
        "t2iadapter_depth_sd14v1.pth": tiny.t2i_adapter,
    }
    monkeypatch.setattr(embedded, "pipeline", lambda *_a, **_k: tiny.pipeline())
    monkeypatch.setattr(embedded, "names", lambda: tuple(modules))
    monkeypatch.setattr(embedded, "load", lambda name: modules[name]())
    load = ck.load

    def loaded(source: Any, **options: Any) -> Any:
        return downloads[source]() if source in downloads else load(source, **options)

    monkeypatch.setattr(ck, "load", loaded, raising=False)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", lambda *_a: tiny.pipeline())
    monkeypatch.chdir(tmp_path)
    picture().save("photo.png")
    tiny.t2i_adapter().save(tmp_path / "weights.safetensors", layout="original")


def picture() -> Image.Image:
    values = np.zeros((64, 64, 3), np.uint8)
    values[16:48, 16:48] = (200, 40, 40)
    return Image.fromarray(values)


def test_there_are_examples() -> None:
    assert len(PYTHON) >= 4
    assert len(SHELL) >= 4


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run(code: str) -> None:
    names: dict[str, Any] = {"photo": picture(), "depth_map": picture()}
    exec(compile(code, "README.md", "exec"), names)
    drawn = names.get("image", names.get("picture"))
    assert isinstance(drawn, Image.Image)
    if "run" in names:
        rows = names["run"].report().rows
        assert all(row.applied > 0 for row in rows)


def test_the_ten_lines_report_both_controls() -> None:
    names: dict[str, Any] = {"photo": picture(), "depth_map": picture()}
    exec(compile(PYTHON[0], "README.md", "exec"), names)
    first, second = names["run"].report().rows
    assert (first.steps, first.applied, first.skipped) == (20, 16, 4)
    assert (second.steps, second.applied, second.skipped) == (20, 20, 0)
    assert first.norm > 0
    assert second.norm > 0
    text = str(names["run"].report())
    assert first.control in text
    assert second.control in text


def test_shell_examples_run(capfd: pytest.CaptureFixture[str]) -> None:
    for line in SHELL:
        if "--help" in line:
            continue
        arguments = shlex.split(line, comments=True)[1:]
        assert main(arguments) == 0, f"{line}\n{capfd.readouterr().err}"
    assert Path("picture.png").is_file()
    with Image.open("picture.png") as first, Image.open("again.png") as again:
        assert np.array_equal(np.asarray(first), np.asarray(again))


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
