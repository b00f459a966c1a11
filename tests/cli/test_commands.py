"""The other commands, and the program as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.binding import read_map
from tests import tiny
from tests.cli.conftest import Command

COMMANDS = ("demo", "generate", "preprocess", "detectors", "inspect", "convert", "models")


def test_preprocess_writes_maps_and_numbers_them(command: Command, photo: Path) -> None:
    names = [command("preprocess", "canny", str(photo), "-O", "low_threshold=50").lines[0] for _ in range(2)]
    assert names == ["photo-canny.png", "photo-canny-2.png"]
    with Image.open("photo-canny.png") as drawn:
        expected = ck.preprocess(ck.open_image(photo), "canny", low_threshold=50)
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))


def test_preprocess_takes_many_files_and_a_size(command: Command, photo: Path) -> None:
    other = photo.with_name("other.png")
    other.write_bytes(photo.read_bytes())
    done = command("preprocess", "canny", str(photo), str(other), "-o", "maps", "--size", "32x48", "--json")
    assert done.code == 0, done.err
    assert [Path(entry["map"]).name for entry in done.json] == ["photo-canny.png", "other-canny.png"]
    with Image.open(done.json[0]["map"]) as drawn:
        assert drawn.size == (32, 48)
    assert command("preprocess", "canny", str(photo), "-o", "small.png", "--size", "16").code == 0
    with Image.open("small.png") as drawn:
        assert drawn.size == (16, 16)


def test_a_map_for_inpainting_keeps_its_hidden_pixels_in_the_file(command: Command, photo: Path) -> None:
    box = "0.25,0.25,0.75,0.5"
    common: dict[str, Any] = {"channels": 3, "resize": "stretch", "channel_order": None}
    wanted = read_map(ck.open_image(photo), detect="inpaint", detect_options={"box": box}, **common)
    assert command("preprocess", "inpaint", str(photo), "-O", f"box={box}", "-o", "map.png").code == 0
    (folder := photo.parent / "photos").mkdir()
    photo.rename(folder / photo.name)
    assert command("preprocess", "inpaint", "photos", "-O", f"box={box}", "-o", "maps", "-j", "1").code == 0
    (inside,) = Path("maps").rglob("*.png")
    for file in (Path("map.png"), inside):
        again = read_map(ck.open_image(file), detect=None, detect_options=None, **common)
        assert torch.equal(again.rows, wanted.rows)
        assert (again.rows == -1).all(1).sum() == 32 * 16


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("cany", "photo.png"), 2, "Did you mean canny"),
        (("canny", "absent.png"), 1, "no such file"),
        (("canny", "photo.png", "-O", "loud=3"), 2, "loud"),
        (("canny", "photo.png", "-O", "low"), 2, "KEY=VALUE"),
        (("canny", "photo.png", "-O", "low_threshold=-3"), 2, "low"),
        (("canny", "photo.png", "photo.png", "-o", "a.png"), 2, "folder"),
        (("canny", "photo.png", "-o", "a.jpg"), 2, ".png"),
        (("canny",), 2, "files"),
    ],
)
def test_mistakes_of_preprocess(
    command: Command, photo: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = command("preprocess", *arguments)
    assert done.code == code
    assert says.lower() in done.err.lower()
    assert done.err.count("\n") == 1


def test_detectors_are_listed(command: Command) -> None:
    assert "canny" in command("detectors").out
    listed = command("detectors", "--json").json
    assert {entry["name"] for entry in listed} == {info.name for info in ck.detectors()}


def test_inspect_says_what_a_file_is(command: Command, tmp_path: Path) -> None:
    tiny.controlnet().save(tmp_path / "weights")
    done = command("inspect", "weights", "--json")
    assert done.code == 0, done.err
    assert done.json["kind"] == "controlnet"
    assert "controlnet" in command("inspect", "weights").out
    assert command("inspect", "absent").code == 1


@pytest.mark.usefixtures("tiny_embedded")
def test_models_are_listed(command: Command) -> None:
    done = command("models", "--json")
    assert [entry["name"] for entry in done.json] == ["controlnet-canny", "t2i-depth"]
    assert all(entry["parameters"] > 0 for entry in done.json)
    assert "controlnet-canny" in command("models").out


def test_no_arguments_is_the_help(command: Command) -> None:
    done = command()
    assert all(name in done.out + done.err for name in COMMANDS)
    assert command("--version").out == f"controlkit {ck.__version__}\n"
    assert command("paint").code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert done.code == 0
    assert "Examples" in done.out
    assert f"controlkit {name}" in done.out


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from controlkit.cli import main; sys.exit(main())", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_program_as_a_process(tmp_path: Path) -> None:
    listed = run("detectors", "--json", cwd=tmp_path)
    assert listed.returncode == 0
    assert listed.stderr == ""
    assert json.loads(listed.stdout)
    wrong = run("generate", "a", "--steps", "two", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr
    failed = run("inspect", "absent.safetensors", cwd=tmp_path, CONTROLKIT_DEBUG="1")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Traceback" in failed.stderr
