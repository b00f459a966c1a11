"""Folders of maps: what is made, what is kept, what is refused; stopping, dying workers, the cache."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.batch import FilesReport, MapCache, making, preprocess_files, sources
from controlkit.batch.manifest import Manifest
from tests.batch.conftest import contents, noise

ROOT = Path(__file__).resolve().parents[2]


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def counts(report: FilesReport) -> tuple[int, int, int]:
    return report.made, report.kept, len(report.failed)


@pytest.mark.filterwarnings("ignore:image has a colour profile")
def test_a_folder_becomes_one_tree_for_each_detector(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps: list[tuple[int, int]] = []
    detectors = {"canny": {"low_threshold": 50}, "blur": {}}
    report = preprocess_files(
        photos, detectors, out, size=48, workers=2, progress=lambda *now: steps.append(now)
    )
    assert counts(report) == (14, 0, 0)
    assert steps == [(i, 14) for i in range(1, 15)]
    lines = manifest(out)
    assert [(line["detector"], line["source"]) for line in lines] == sorted(
        (name, path.relative_to(photos).as_posix())
        for name in detectors
        for path in photos.rglob("*")
        if path.is_file()
    )
    assert sorted(contents(out)) == sorted([line["map"] for line in lines] + ["manifest.jsonl"])
    for line in lines:
        assert line["map"] == f"{line['detector']}/{Path(line['source']).with_suffix('.png').as_posix()}"
        photo = ck.open_image(photos / line["source"])
        expected = ck.preprocess(photo, line["detector"], size=48, **detectors[line["detector"]])
        with Image.open(out / line["map"]) as drawn:
            assert np.array_equal(np.asarray(drawn), np.asarray(expected))
            assert list(drawn.size) == line["size"]
        assert making.facts_of(out / line["map"])["source_sha256"] == line["source_sha256"]


def _option(photos: Path, out: Path) -> dict[str, Any]:
    return {"detectors": {"blur": {"sigma": 3}}}


def _source(photos: Path, out: Path) -> dict[str, Any]:
    noise().save(photos / "photo 000.jpg")
    return {}


def _version(photos: Path, out: Path) -> dict[str, Any]:
    text = (out / "manifest.jsonl").read_text()
    (out / "manifest.jsonl").write_text(
        text.replace(f'"controlkit":"{ck.__version__}"', '"controlkit":"0.0.1"')
    )
    return {}


def _lost(photos: Path, out: Path) -> dict[str, Any]:
    (out / "blur" / "photo 000.png").unlink()
    return {}


def _unlisted(photos: Path, out: Path) -> dict[str, Any]:
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30] + b"\n")
    return {}


def _torn(photos: Path, out: Path) -> dict[str, Any]:
    content = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").write_bytes(content[:-9])
    (out / "blur" / ".controlkit-0123456789ab.part").write_bytes(b"half")
    return {}


def _repeated(photos: Path, out: Path) -> dict[str, Any]:
    content = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").write_bytes(content + content.splitlines(keepends=True)[0])
    return {}


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda photos, out: {}, 0),
        (lambda photos, out: {"force": True}, 7),
        (lambda photos, out: {"size": 40}, 7),
        (lambda photos, out: {"resolution": 40}, 7),
        (_option, 7),
        (_version, 7),
        (_source, 1),
        (_lost, 1),
        (_torn, 1),
        (_unlisted, 3),
        (_repeated, 0),
    ],
)
def test_only_what_changed_is_made_again(
    photos: Path, tmp_path: Path, change: Callable[[Path, Path], dict[str, Any]], again: int
) -> None:
    out = tmp_path / "out"
    preprocess_files(photos, "blur", out)
    asked: dict[str, Any] = {"detectors": "blur", **change(photos, out)}
    assert counts(preprocess_files(photos, out=out, **asked)) == (again, 7 - again, 0)
    fresh = tmp_path / "fresh"
    preprocess_files(photos, out=fresh, **asked)
    assert contents(out) == contents(fresh)
    assert counts(preprocess_files(photos, out=out, **{**asked, "force": False})) == (0, 7, 0)


def test_what_cannot_be_read_is_listed_and_the_rest_made(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (photos / "thin.png").touch()
    out = tmp_path / "out"
    report = preprocess_files(photos, ["canny", "blur"], out, workers=2)
    assert counts(report) == (14, 0, 4)
    assert {(one.source, one.detector) for one in report.failed} == {
        (source, detector) for source in ("bad.jpg", "thin.png") for detector in ("canny", "blur")
    }
    assert all(one.source in one.message for one in report.failed)
    assert [line["error"]["code"] for line in manifest(out) if "error" in line] == ["CK-H10"] * 4
    noise().save(photos / "bad.jpg")
    assert counts(preprocess_files(photos, ["canny", "blur"], out)) == (2, 14, 2)


def test_a_file_that_controlkit_did_not_make_stays(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = out / "blur" / "photo 000.png"
    path.parent.mkdir(parents=True)
    noise().save(path)
    before = path.read_bytes()
    report = preprocess_files(photos, "blur", out)
    assert counts(report) == (6, 0, 1)
    assert "did not make" in report.failed[0].message
    assert path.read_bytes() == before
    assert counts(preprocess_files(photos, "blur", out, force=True)) == (7, 0, 0)
    assert path.read_bytes() != before


def test_names_of_maps_never_meet(tmp_path: Path) -> None:
    for name in ("a.png", "A.bmp", "b.gif", "c.png", "c.jpg", "c.jpg.gif", "notes.txt", ".hidden.png"):
        noise(8).save(tmp_path / name, format="PNG")
    (tmp_path / ".git").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / ".git")
    out = tmp_path / "maps"
    assert counts(preprocess_files(tmp_path, "blur", out)) == (6, 0, 0)
    assert counts(preprocess_files(tmp_path, "blur", out)) == (0, 6, 0)  # its own maps are no sources
    names = {line["source"]: line["map"].removeprefix("blur/") for line in manifest(out)}
    assert names == {
        "a.png": "a.png.png",
        "A.bmp": "A.bmp.png",
        "b.gif": "b.png",
        "c.png": "c.png.png",
        "c.jpg": "c.jpg.png",
        "c.jpg.gif": "c.jpg.gif.png",
    }
    (tmp_path / "A.bmp").unlink()
    preprocess_files(tmp_path, "blur", out)
    assert (out / "blur" / "a.png").exists()
    assert not (out / "blur" / "a.png.png").exists()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["photos/a"], ["b c/photo 002.webp", "b c/photo 005.webp", "photo 001.png", "photo 004.png"]),
        (["photos/*.jpg"], ["photo 000.jpg", "photo 003.jpg", "photo 006.jpg"]),
        (["photos/**/*.webp"], ["a/b c/photo 002.webp", "a/b c/photo 005.webp"]),
        (["photos/a/photo 001.png", "photos/*0.jpg"], ["photo 000.jpg", "photo 001.png"]),
        (["photos/a", "photos/a/photo 001.png", "photos/a"], 4),
    ],
)
def test_what_is_meant(photos: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], names: Any) -> None:
    monkeypatch.chdir(photos.parent)
    found = [source.name for source in sources.find(given, Path("out"))]
    assert (len(found) if isinstance(names, int) else found) == names


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"sources": "absent"}, ck.HintError, "no such file or folder"),
        ({"sources": "photos/*.bmp"}, ck.HintError, "no pictures"),
        ({"sources": []}, ck.HintError, "no pictures"),
        ({"sources": ["photos", "twin"]}, ck.ParameterError, "two pictures called "),
        ({"detectors": "cany"}, ck.ParameterError, "Did you mean canny"),
        ({"detectors": ["blur", "blur"]}, ck.ParameterError, "twice"),
        ({"detectors": []}, ck.ParameterError, "none"),
        ({"detectors": {"blur": {"loud": 1}}}, ck.ParameterError, "loud"),
        ({"workers": 0}, ck.ParameterError, "workers"),
        ({"out": "photos/photo 000.jpg"}, ck.SaveError, "exist"),
    ],
)
def test_refused_before_anything_is_made(
    photos: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    monkeypatch.chdir(photos.parent)
    shutil.copytree(photos, "twin")
    with pytest.raises(error, match=says):
        preprocess_files(**{"sources": "photos", "detectors": "blur", "out": "out", **changes})
    assert not Path("out").exists()


def test_two_runs_do_not_share_a_folder(photos: Path, tmp_path: Path) -> None:
    held = Manifest(tmp_path / "out")
    with pytest.raises(ck.Busy, match="another run"):
        preprocess_files(photos, "blur", tmp_path / "out")
    held.close()
    assert preprocess_files(photos, "blur", tmp_path / "out").made == 7


def test_a_full_disk_stops_the_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = making.write_whole, []

    def full(path: Path, content: bytes) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(making, "write_whole", full)
    with pytest.raises(ck.SaveError, match="no space left"):
        preprocess_files(photos, "blur", tmp_path / "out", workers=1)
    assert len(manifest(tmp_path / "out")) == 3
    monkeypatch.undo()
    assert counts(preprocess_files(photos, "blur", tmp_path / "out")) == (4, 3, 0)


def test_the_cache_serves_other_folders(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    preprocess_files(photos, "blur", tmp_path / "first", cache=cache)
    assert len(list(cache.rglob("*.map"))) == 7

    def never(*_arguments: Any) -> bytes:
        raise AssertionError("made again")

    monkeypatch.setattr(making, "_drawn", never)
    monkeypatch.setenv("CONTROLKIT_MAP_CACHE", str(cache))
    shutil.move(photos, tmp_path / "moved")
    assert counts(preprocess_files(tmp_path / "moved", "blur", tmp_path / "second")) == (7, 0, 0)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    other = preprocess_files(tmp_path / "moved", {"blur": {"sigma": 2}}, tmp_path / "third")
    assert counts(other) == (0, 0, 7)


def test_the_cache_is_bounded_and_heals(tmp_path: Path) -> None:
    cache = MapCache(tmp_path / "cache", max_bytes=1000)
    keys = [f"{i:064x}" for i in range(30)]
    for i, key in enumerate(keys):
        cache.put(key, bytes([i]) * 100)
        os.utime(next(cache.folder.rglob(f"{key}.map")), ns=(i, i))
        if i > 2:
            assert cache.get(keys[1]) == b"\1" * 100  # what is used stays
    sizes = [path.stat().st_size for path in cache.folder.rglob("*.map")]
    assert 400 <= sum(sizes) <= 1000
    assert cache.get(keys[-1]) == bytes([29]) * 100
    assert cache.get(keys[2]) is None
    path = next(cache.folder.rglob(f"{keys[-1]}.map"))
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.get(keys[-1]) is None
    assert not path.exists()
    with pytest.raises(ck.ParameterError):
        cache.get("../../outside")


POISON = """
import os, sys
from controlkit.batch import pool, preprocess_files
pool._START = "import sys; sys.path[:] = {{path!r}}; import os; from controlkit.batch import making; " + (
    "draw = making._drawn; making._drawn = lambda p, t, a, n: os._exit(9) "
    "if t.source == 'photo 000.jpg' and a['detector'] == 'canny' else draw(p, t, a, n); "
    "from controlkit.batch.worker import main; main()"
)
report = preprocess_files(sys.argv[1], ["blur", "canny", "invert"], sys.argv[2], workers=1 + 1)
print(report.made, report.kept, len(report.failed), report.failed[0].message)
"""


@pytest.mark.slow
def test_a_map_that_kills_its_worker_is_an_error_of_that_map(photos: Path, tmp_path: Path) -> None:
    code = POISON.replace("{{", "{").replace("}}", "}")
    done = subprocess.run(
        [sys.executable, "-c", code, photos, tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith("20 0 1 photo 000.jpg: canny ended its process twice")
    assert len(manifest(tmp_path / "out")) == 21


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process group")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupted(tmp_path: Path, workers: int) -> None:
    (tmp_path / "photos").mkdir()
    noise(400).save(tmp_path / "photos" / "0.png")
    for i in range(1, 300):
        shutil.copy(tmp_path / "photos" / "0.png", tmp_path / "photos" / f"{i}.png")
    command = (  # a background job of a shell has SIGINT ignored, and so have its children
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from controlkit.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, "preprocess", "lineart", "photos", "-o", "out", "-j", str(workers)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    listed = tmp_path / "out" / "manifest.jsonl"
    while not (listed.exists() and listed.stat().st_size) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.part"))
    done = len(manifest(tmp_path / "out"))
    assert 0 < done < 300
    assert len(list((tmp_path / "out").rglob("*.png"))) == done
