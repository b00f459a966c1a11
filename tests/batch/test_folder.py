"""A folder run: the same tree, one line each, what is there kept, what has changed made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.batch import preprocess_files
from tests.batch.conftest import noise


def listed(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:image has a colour profile")
def test_maps_mirror_the_tree_and_are_those_of_preprocess(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = preprocess_files(photos, {"canny": {"auto": True}, "blur": {}}, out, workers=2)
    assert (report.made, report.kept, report.failed) == (14, 0, [])
    for line in listed(out):
        source, drawn = photos / line["source"], out / line["map"]
        assert drawn == out / line["detector"] / Path(line["source"]).with_suffix(".png")
        options = {"auto": True} if line["detector"] == "canny" else {}
        expected = ck.preprocess(ck.open_image(source), line["detector"], **options)
        with Image.open(drawn) as found:
            assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(expected))


CHANGES: dict[str, int] = {"nothing": 0, "an option": 7, "a picture": 1, "a map is gone": 1, "force": 7}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_has_changed_is_made_again(change: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preprocess_files(photos, {"canny": {}}, out, workers=1)
    first = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    if change == "a picture":
        noise().save(first)
    if change == "a map is gone":
        next((out / "canny").rglob("*.png")).unlink()
    options = {"low_threshold": 10} if change == "an option" else {}
    again = preprocess_files(photos, {"canny": options}, out, workers=1, force=change == "force")
    assert (again.made, again.kept) == (CHANGES[change], 7 - CHANGES[change])
    assert len(listed(out)) == 7


def test_what_cannot_be_read_is_told_and_the_others_are_made(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    report = preprocess_files(photos, "canny", tmp_path / "out", workers=1)
    assert (report.made, [failure.source for failure in report.failed]) == (7, ["broken.png"])
    assert "no picture format" in report.failed[0].message
    (error,) = [line for line in listed(tmp_path / "out") if "error" in line]
    assert error["source"] == "broken.png"


def test_a_torn_last_line_is_mended(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preprocess_files(photos, "canny", out, workers=1)
    manifest = out / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    again = preprocess_files(photos, "canny", out, workers=1)
    assert (again.made + again.kept, len(listed(out))) == (7, 7)


def test_a_cache_serves_another_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    preprocess_files(photos, "canny", tmp_path / "one", workers=1, cache=cache)
    monkeypatch.setattr("controlkit.preprocessors.canny.Canny.detect", lambda *_: 1 / 0)
    report = preprocess_files(photos, "canny", tmp_path / "two", workers=1, cache=cache)
    assert (report.made, report.failed) == (7, [])
