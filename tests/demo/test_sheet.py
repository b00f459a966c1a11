"""The contact sheet, drawn with tiny random models: layout, seeds, scores; not beauty."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit import demo, embedded, evaluation
from controlkit.demo.drawing import SEEDS, total_steps
from controlkit.evaluation.judge import Judge, JudgeNet
from tests import tiny


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[demo.DemoRow]:
    modules: dict[str, Any] = {"controlnet-canny": tiny.controlnet, "t2i-depth": tiny.t2i_adapter}
    monkeypatch.setattr(embedded, "names", lambda: tuple(modules))
    monkeypatch.setattr(embedded, "load", lambda name: modules[name]())
    monkeypatch.setattr(evaluation, "load_judge", lambda: Judge(JudgeNet()))
    return list(demo.draw(demo.sources(), pipeline=tiny.pipeline(), steps=1, seed=3))


def test_the_sheet_shows_both_sources_with_and_without_control(rows: list[demo.DemoRow]) -> None:
    assert [row.source.module for row in rows] == ["controlnet-canny", "t2i-depth"]
    for row in rows:
        assert row.source.picture.size == row.source.control_map.size == (128, 128)
        assert len(row.controlled) == len(row.uncontrolled) == SEEDS
        for with_control, without in zip(row.controlled, row.uncontrolled, strict=True):
            first, second = ck.Recipe.load(with_control), ck.Recipe.load(without)
            assert first.seed == second.seed
            assert first.prompt == second.prompt == row.source.prompt
            assert (len(first.controls), len(second.controls)) == (1, 0)
            assert not np.array_equal(np.asarray(with_control), np.asarray(without))
        assert -1 <= row.score.controlled <= 1
        assert row.score.name in str(row.score)
    sheet = demo.contact_sheet(rows)
    assert sheet.mode == "RGB"
    assert 1200 < sheet.width < 2000
    for row in rows:
        for picture in (row.source.picture, row.source.control_map, *row.controlled, *row.uncontrolled):
            assert _shows(sheet, picture)


def _shows(sheet: Image.Image, picture: Image.Image) -> bool:
    """Whether the picture is somewhere on the sheet, at one of the two sizes."""
    from controlkit.demo import sheet as layout

    values = np.asarray(sheet)
    for side in (layout.LARGE, layout.CELL):
        small = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        starts = np.argwhere((values[: -side + 1, : -side + 1] == small[0, 0]).all(-1))
        for y, x in starts:
            if np.array_equal(values[y : y + side, x : x + side], small):
                return True
    return False


def test_prompts_use_words_that_the_model_knows() -> None:
    from controlkit.embedded.vocabulary import WORDS

    for source in demo.sources():
        assert set(source.prompt.split()) <= set(WORDS)


def test_without_scikit_image_a_second_scene_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "skimage" else find(name, *rest)
    )
    first, second = demo.sources()
    assert "rendered" in first.title
    assert np.asarray(first.picture).std() > 0
    assert not np.array_equal(np.asarray(first.picture), np.asarray(second.picture))


def test_progress_covers_every_step() -> None:
    assert total_steps(demo.sources(), 20) == 2 * 2 * SEEDS * 20
