"""Thousands of changed files: each is refused by an error of ours, or loads whole, finite, from the file."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("made", SUFFIXES)
def test_ten_thousand_mutants_at_the_door(made: Format, tmp_path: Path) -> None:
    tally = judge(made, FULL, tmp_path)
    assert tally.total == FULL
    assert len(tally.refused) > 8
    assert tally.grown < 300, tally.grown
