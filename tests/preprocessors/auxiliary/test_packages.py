"""Packages that controlnet-aux's detectors need: what happens without them, and what a run leaves behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controlkit.errors import MissingExtra
from controlkit.preprocessors import build
from controlkit.preprocessors.auxiliary import _ALIAS
from controlkit.preprocessors.networks import Networked
from tests.preprocessors.auxiliary.conftest import Written
from tests.preprocessors.auxiliary.published import photo

IMAGE = photo(64, 64)


def teed(weights: Path) -> Any:
    return build("teed", weights=str(weights), device="cpu")


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if controlnet-aux had never been imported."""
    for name in [name for name in sys.modules if name.startswith(_ALIAS)]:
        monkeypatch.delitem(sys.modules, name)


def test_without_controlnet_aux(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written("5_model.pth")
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(MissingExtra, match=r"pip install controlkit\[detectors\]"):
        teed(folder).detect(IMAGE)


@pytest.mark.parametrize("broken", ["timm", "mediapipe", "skimage"])
def test_a_broken_package_breaks_only_its_own(
    broken: str, written: Written, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = written("5_model.pth", "mobile_sam.pt")
    forget(monkeypatch)
    for name in {broken, *(name for name in sys.modules if name.startswith(f"{broken}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    assert teed(folder).detect(IMAGE).any()
    if broken == "timm":
        sam = build("sam", model="vit_t", weights=str(folder), device="cpu")
        assert isinstance(sam, Networked)
        with pytest.raises(MissingExtra, match="timm"):
            sam.network()
    if broken == "mediapipe":
        with pytest.raises(MissingExtra, match=r"pip install controlkit\[detectors\] mediapipe"):
            build("mediapipe-face").detect(IMAGE)


def test_a_mediapipe_without_its_older_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", SimpleNamespace())
    with pytest.raises(MissingExtra, match=r"without mediapipe\.solutions"):
        build("mediapipe-face", max_faces=2).detect(IMAGE)


def test_nothing_is_left_behind(written: Written, tmp_path: Path) -> None:
    """In a process of its own: variables, what is printed, warnings, and which packages were imported."""
    shutil.copy(written("5_model.pth") / "5_model.pth", tmp_path)
    (tmp_path / "body_pose_model.pth").write_bytes(b"no weights")
    code = """
import os, sys, warnings
warnings.simplefilter("error")
import numpy as np
from controlkit.errors import CheckpointError
from controlkit.preprocessors import build
os.environ.pop("KMP_DUPLICATE_LIB_OK", None)
before = dict(os.environ)
black = np.zeros((20, 20, 3), np.uint8)
build("teed", weights=sys.argv[1], device="cpu").detect(black)
try:
    build("openpose", weights=sys.argv[1], device="cpu").detect(black)
except CheckpointError:
    assert "_controlkit_controlnet_aux.open_pose" in sys.modules
changed = {name for name, value in os.environ.items() if before.get(name) != value}
assert not changed & {"KMP_DUPLICATE_LIB_OK"}, changed
assert not {"controlnet_aux", "mediapipe"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
