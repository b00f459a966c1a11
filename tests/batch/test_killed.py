"""A run over a folder that is killed again and again ends as the undisturbed run does, to the byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controlkit.batch import preprocess_files
from tests.batch.conftest import contents, fill

DETECTORS = {"canny": {"auto": True}, "lineart": {}}
CODE = """
import sys
from controlkit.batch import preprocess_files
preprocess_files(sys.argv[1], {detectors!r}, sys.argv[2], workers={workers})
"""
SCRATCH = Path(__file__).resolve().parents[2]


def begin(source: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    code = CODE.format(detectors=DETECTORS, workers=workers)
    return subprocess.Popen(
        [sys.executable, "-c", code, source, out],
        cwd=SCRATCH,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )


def lines(out: Path) -> int:
    manifest = out / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a process group")
@pytest.mark.parametrize(
    ("photographs", "kills"), [(40, 4), pytest.param(200, 20, marks=pytest.mark.slow)], ids=["small", "full"]
)
def test_killed_and_restarted(tmp_path: Path, photographs: int, kills: int) -> None:
    source = fill(tmp_path / "photos", photographs)
    undisturbed = tmp_path / "undisturbed"
    assert preprocess_files(source, DETECTORS, undisturbed, workers=1).made == 2 * photographs
    out = tmp_path / "out"
    draw = random.Random(20)
    goals = sorted(draw.randrange(2 * photographs) for _ in range(kills))
    figures: list[int] = []
    for goal in goals:
        process = begin(source, out, workers=1 if len(figures) % 4 else 2)
        while lines(out) <= goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)  # anywhere in the making of a map
        running = process.poll() is None
        if running:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        figures.append(lines(out) if running else -1)
    assert any(0 < figure < 2 * photographs for figure in figures), figures
    before = lines(out)
    report = preprocess_files(source, DETECTORS, out, workers=1)
    sys.stdout.write(f"lines at the kills {figures}; then {report.kept} kept, {report.made} made\n")
    assert report.made + report.kept == 2 * photographs
    assert report.kept >= before - 1
    listed = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len(listed) == 2 * photographs == len({(line["source"], line["detector"]) for line in listed})
    found, expected = contents(out), contents(undisturbed)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
