"""Every row of the fault table: the error's class and code, what its message names, and what it may cost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from controlkit.checkpoints import inspect, load
from controlkit.errors import ControlKitError
from tests.checkpoints import (
    faults_archives,
    faults_configs,
    faults_files,
    faults_hub,
    faults_kinds,
    faults_pickles,
    faults_places,
    faults_weights,
)
from tests.checkpoints.fault_table import CHECKS, REFUSALS, ROWS, Refusal
from tests.checkpoints.files import write
from tests.checkpoints.judging import SECONDS

CASES = [(row, name) for row in sorted(REFUSALS) for name in REFUSALS[row]]
FUNCTIONS = [(row, name) for row in sorted(CHECKS) for name in CHECKS[row]]
MODULES = (
    faults_files,
    faults_pickles,
    faults_archives,
    faults_kinds,
    faults_weights,
    faults_configs,
    faults_places,
    faults_hub,
)
"""Each adds its rows when it is imported."""


def label(value: Any) -> str:
    return f"L{value}" if isinstance(value, int) else str(value)


def test_every_row_has_a_case() -> None:
    assert list(ROWS) == list(range(1, 39))
    assert REFUSALS.keys() | CHECKS.keys() == ROWS.keys()


@pytest.mark.parametrize(("row", "name"), CASES, ids=label)
def test_a_bad_input_is_refused_by_its_fault(
    row: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = REFUSALS[row][name]
    source = case.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    began = time.process_time()
    with pytest.raises(ControlKitError) as caught:
        load(source, **case.options)
    assert time.process_time() - began < SECONDS
    complains(caught.value, case, source)
    if case.header:
        with pytest.raises(ControlKitError) as again:
            inspect(source)
        assert (type(again.value), again.value.code) == (case.error, case.code)
    assert not (tmp_path / "marker").exists()
    assert not [found for found in set(sys.modules) - modules if found.startswith(("canary", "inner"))]


def complains(error: ControlKitError, case: Refusal, source: Any) -> None:
    """The error says what was found in what, and what to do, in one line of at most 600 characters."""
    text = str(error)
    assert type(error) is case.error, text
    assert error.code == case.code, text
    assert len(text) <= 600
    assert text.isprintable()
    assert error.found
    assert error.fix
    assert "weights_only" not in text
    assert "train it" not in text
    name = Path(source).name if isinstance(source, str | Path) else "state dict"
    assert name in error.what or "config" in error.what or "index" in error.what, text
    for words in case.says:
        assert re.search(words, text), (words, text)


@pytest.mark.parametrize(("row", "name"), FUNCTIONS, ids=label)
def test_a_row_that_is_more_than_a_refusal(
    row: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CHECKS[row][name](tmp_path, monkeypatch)


COST = """
import json, resource, sys, time
from controlkit.checkpoints import load
from controlkit.errors import ControlKitError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

load(sys.argv[1])
for path in sys.argv[2:]:
    before, began = peak(), time.process_time()
    try:
        load(path)
        code = None
    except ControlKitError as error:
        code = error.code
    print(json.dumps([path, code, time.process_time() - began, peak() - before]))
"""


def test_what_refusing_costs(tmp_path: Path) -> None:
    """Time and memory of the heavy rows (L3, L9, L16, L31), in a process of its own.

    The bounds of the table: a length alone costs nothing, 50 ms; a header 1 s and 512 MB; a bomb twice its
    file and 256 MB (of its time the table says nothing: 2 s); a giant's config 1 s.
    """
    paths: list[str] = [str(faults_files.adapter().save(tmp_path / "good"))]
    bounds: list[tuple[str, float, int]] = []

    def add(name: str, path: Path, seconds: float, megabytes: int) -> None:
        paths.append(str(path))
        bounds.append((name, seconds, megabytes))

    for name, content in faults_files.LENGTHS.items():
        add(f"L3 {name}", write(tmp_path / f"{name}.safetensors", content), 0.05, 8)
    for name, content in faults_files.HEAVY.items():
        add(f"L9 {name}", write(tmp_path / f"{name}.safetensors", content), 1.0, 512)
    for row in (16, 31):
        for name, case in REFUSALS[row].items():
            (folder := tmp_path / name).mkdir()
            path = case.make(folder)
            size = sum(part.stat().st_size for part in folder.rglob("*") if part.is_file()) >> 20
            add(f"L{row} {name}", path, *((2.0, 2 * size + 256) if row == 16 else (1.0, 64)))
    done = subprocess.run(
        [sys.executable, "-c", COST, *paths],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == len(bounds)
    for (name, seconds, megabytes), (_, code, took, grew) in zip(bounds, measured, strict=True):
        assert code is not None, name
        assert took < seconds, (name, took)
        assert grew < megabytes, (name, grew)
