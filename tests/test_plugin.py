"""The worked example of CONTRIBUTING.md: a package that adds a control and a detector, installed and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "examples" / "plugin"

USE = """
import numpy as np
from PIL import Image

import controlkit as ck
from controlkit import plugins
from tests import tiny

assert plugins.kinds() == {"brighten": "controlkit-brighten"}
assert "contrast" in {info.name for info in ck.detectors()}
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
control = {"module": "plugin:brighten", "image": picture, "detect": None, "end": 0.5}
control["options"] = {"amount": 0.5}
values = {"prompt": "a house", "steps": 4, "width": 64, "height": 64}
pipe = tiny.pipeline()
(plain,) = ck.run(values, pipe)
(bright,) = ck.run({**values, "controls": [control]}, pipe)
assert not np.array_equal(np.asarray(plain), np.asarray(bright))
(again,) = ck.run(ck.Recipe.load(bright), pipe)
assert np.array_equal(np.asarray(bright), np.asarray(again))

from controlkit_brighten.control import Brighten

contrast = ck.preprocess(picture, "contrast", factor=3.0)
with ck.attach(pipe, Brighten().on(contrast, scale=0.5), tiny.controlnet().on(picture)) as run:
    pipe("a house", num_inference_steps=2, width=64, height=64)
assert [row.applied for row in run.report().rows] == [2, 2]
assert run.report().rows[0].norm > 0
print("used")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the plug-in is installed into."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(folder / "target"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "target"


def test_the_worked_example_is_installed_and_draws(installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(installed), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "used\n", done.stderr


def test_contributing_shows_the_control_as_it_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = (PLUGIN / "controlkit_brighten" / "control.py").read_text()
    assert f"```python\n{code}```" in text


def test_a_plug_in_that_is_not_there_is_named() -> None:
    import controlkit as ck
    from controlkit import plugins

    assert plugins.kinds() == {}
    with pytest.raises(ck.ParameterError, match="brighten"):
        plugins.module("brighten")
