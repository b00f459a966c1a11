"""Thousands of changed files: each is refused by an error of ours, or loads whole, finite, from the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints.folder_mutations import PARTS, Part, judge_folders
from tests.checkpoints.judging import judge
from tests.checkpoints.mutations import SUFFIXES, Format

QUICK, FULL = 250, 10_000


@pytest.mark.parametrize("made", SUFFIXES)
def test_some_mutants_at_the_door(made: Format, tmp_path: Path) -> None:
    tally = judge(made, QUICK, tmp_path)
    assert tally.total == QUICK
    assert sum(tally.refused.values()) > QUICK // 2
    assert tally.unchanged + tally.altered > 10
    assert tally.slowest[0] < 2, tally.slowest


@pytest.mark.parametrize("part", PARTS)
def test_some_changed_folders_at_the_door(part: Part, tmp_path: Path) -> None:
    tally = judge_folders(part, QUICK, tmp_path)
    assert tally.total == QUICK
    assert sum(tally.refused.values()) > QUICK // 3
    assert tally.unchanged > 5
    assert tally.altered == 0  # neither file holds weights
    assert tally.slowest[0] < 2, tally.slowest


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_ten_thousand_changed_folders_at_the_door(part: Part, tmp_path: Path) -> None:
    tally = judge_folders(part, FULL, tmp_path)
    assert tally.total == FULL
    assert tally.altered == 0
    assert tally.grown < 300, tally.grown


@pytest.mark.slow
@pytest.mark.parametrize("made", SUFFIXES)
def test_ten_thousand_mutants_at_the_door(made: Format, tmp_path: Path) -> None:
    tally = judge(made, FULL, tmp_path)
    assert tally.total == FULL
    assert len(tally.refused) > 8
    assert tally.grown < 300, tally.grown
