"""The grid of scale by seed: its pictures are those of its recipes, and its sheet restores it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.ui import captions
from controlkit.ui.sheet import Sheet
from controlkit.ui.sweep import CHUNK, Sweep
from tests.ui.conftest import photo, recipe


def load(**changes: Any) -> ck.Recipe:
    return ck.Recipe.load(recipe(**changes))


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_each_picture_of_a_grid_is_the_one_of_its_own_recipe_and_the_sheet_shows_all(service: Any) -> None:
    sweep = Sweep(control=0, scales=(0.0, 1.5), seeds=(4, 9))
    job = service.jobs.submit(load(images=5), sweep)
    assert job.over.wait(60)
    assert (job.state, job.steps, job.total, job.count) == ("done", 12, 12, 4)
    told = job.as_plain()
    assert len(told["results"]) == 4
    for made, (seed, scale) in zip(job.made, [(4, 0.0), (4, 1.5), (9, 0.0), (9, 1.5)], strict=True):
        path = service.places.result(made.name)
        own = ck.Recipe.load(path)
        assert (own.seed, own.controls[0].scale, own.images) == (seed, scale, 1)
        alone = load(seed=seed, controls=[{**recipe()["controls"][0], "scale": scale}])
        assert np.array_equal(pixels(path), np.asarray(ck.run(alone)[0]))
    with Image.open(service.places.result(told["sheet"])) as sheet:
        assert CHUNK in sheet.info
        assert sheet.width > 2 * 64
    names = {path.name for path in service.places.pictures()}
    assert names == {told["sheet"], *(made.name for made in job.made)}


def test_a_grid_is_cancelled_within_a_step_and_keeps_what_was_made(service: Any) -> None:
    step = service.jobs._step

    def stopping(job: Any, done: int) -> None:
        if done == 4:
            job.stop.set()
        step(job, done)

    service.jobs._step = stopping
    job = service.jobs.submit(load(), Sweep(control=0, scales=(0.5, 1.0), seeds=(1, 2)))
    assert job.over.wait(60)
    assert (job.state, job.steps, len(job.made), job.sheet) == ("cancelled", 4, 1, "")
    assert len(service.places.pictures()) == 1


def test_a_curve_is_multiplied_and_guidance_is_swept_too() -> None:
    curved = load(controls=[{**recipe()["controls"][0], "scale": [[0, 1.0], [0.5, 0.2]]}])
    (one,) = Sweep(scales=(0.5,), seeds=(1,)).recipes(curved)
    assert one.controls[0].scale == ((0, 0.5), (0.5, 0.1))
    guided = load(controls=[{"guidance": "color", "target": "red"}])
    (other,) = Sweep(scales=(2.5,), seeds=(1,)).recipes(guided)
    assert other.controls[0].scale == 2.5


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({"control": 1, "scales": [1.0], "seeds": [1]}, "control"),
        ({"scales": [], "seeds": [1]}, "one of each"),
        ({"scales": [1.0, 1.0], "seeds": [1]}, "1 twice"),
        ({"scales": [1.0], "seeds": [-1]}, "seeds"),
        ({"scales": [1e9], "seeds": [1]}, "scale"),
        ({"scales": [k / 10 for k in range(9)], "seeds": list(range(9))}, "at most 64"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_drawn(
    client: Any, service: Any, sweep: dict[str, Any], says: str
) -> None:
    answer = client.post("/api/sweep", json={"recipe": recipe(), "sweep": sweep})
    assert answer.status_code == 422
    assert says in answer.json()["message"]
    assert service.jobs.counts["submitted"] == 0


def test_a_grid_over_http_has_scores_and_a_sheet(client: Any) -> None:
    wanted = {"recipe": recipe(), "sweep": {"scales": [1.0], "seeds": [1, 2]}}
    job = client.post("/api/sweep", json=wanted).json()
    for _ in range(100):
        job = client.get(f"/api/jobs/{job['id']}?wait=5&since={job.get('version', -1)}").json()
        if job["state"] == "done":
            break
    (score,) = job["results"][0]["adherence"]
    assert (score["control"], score["measure"], score["by"]) == (0, "edges", "canny")
    assert 0 <= score["value"] <= 1
    assert client.get(f"/api/results/{job['sheet']}").headers["content-type"] == "image/png"
    assert client.get(f"/api/results/{job['sheet']}/recipe").status_code == 422


def test_a_sheet_and_scores_come_back_from_their_files(service: Any) -> None:
    pytest.importorskip("gradio", reason="no gradio: pip install 'controlkit[ui]'")
    from controlkit.ui import fields, style, sweeping
    from controlkit.ui.page import generate, restored
    from controlkit.ui.settings import Page, Unit

    page = Page(width=64, height=64, steps=2)
    page.units[2] = dataclasses.replace(Unit(use=True, image=photo()), points="0:1, 0.5:0.2")
    told = list(generate(service, page, ("Control 3", "0.5, 1", "2, 4-5")))
    assert 'data-state="done"' in told[-1][0]
    assert "curve" not in told[-1][0]
    assert "edges" in told[-1][3]
    sheet, *pictures = service.places.pictures()
    assert "grid" in sheet.name
    assert len(pictures) == 6
    again = restored(service, sheet.read_bytes())
    page.units = [page.units[2], *page.units[:2], page.units[3]]  # the page puts them from the first on
    assert fields.recipe_of(again, service.places) == fields.recipe_of(page, service.places)
    assert sweeping.fields_in(str(sheet))[:3] == ["Control 1", "0.5, 1.0", "2, 4, 5"]
    assert "edges" in style.gallery([pictures[0]])
    assert captions.of_file(pictures[0])[0]["measure"] == "edges"
    assert captions.of_file(sheet) == []
    (refused,) = generate(service, page, ("Control 3", "1", "1"))
    assert "not in use" in refused[0]
    for scales, seeds in (("a", "1"), ("1", "x"), ("1", "3-1"), ("1", "0-999")):
        (refused,) = generate(service, page, ("Control 1", scales, seeds))
        assert "sweep" in refused[0]


def test_a_large_sheet_stays_below_its_limit() -> None:
    sheet = Sheet("a title", "details " * 99, ["x"] * 8, ["seed 18446744073709551615"] * 8)
    for _ in range(64):
        sheet.add(Image.new("RGB", (2048, 1024)), ["edges 0.83"] * 4)
    drawn = sheet.drawn()
    assert max(drawn.size) < 4700
