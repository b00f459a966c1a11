"""The job core: every job accounted for, cancelled within a step, the pipeline as it was, memory bounded."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.recipes import Keeper, results
from controlkit.ui.errors import Refused
from controlkit.ui.jobs import Jobs, Limits
from controlkit.ui.sampling import Stopped, predicted, watching
from tests import tiny
from tests.ui.conftest import photo, recipe

pytestmark = pytest.mark.usefixtures("tiny_embedded")


@pytest.fixture
def jobs(places: Any) -> Any:
    made = Jobs(places, previews=1.0)
    yield made
    made.close()


def load(**changes: Any) -> ck.Recipe:
    return ck.Recipe.load(recipe(**changes))


def finish(job: Any) -> Any:
    assert job.over.wait(60), job.state
    return job


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_job_makes_the_pictures_of_its_recipe_and_each_carries_its_own(jobs: Any) -> None:
    job = finish(jobs.submit(load(images=2)))
    assert (job.state, job.steps, job.total) == ("done", 6, 6)
    expected = ck.run(load(images=2))
    for made, picture in zip(job.made, expected, strict=True):
        path = jobs.places.result(made.name)
        assert np.array_equal(pixels(path), np.asarray(picture))
        assert ck.Recipe.load(path).seed == made.seed
        assert made.report[0]["applied"] == 2
    assert job.recipe is None
    assert job.preview is None
    assert jobs.counts == {"submitted": 1, "done": 1, "failed": 0, "cancelled": 0}


def test_previews_change_nothing(jobs: Any, places: Any) -> None:
    seen: list[Any] = []
    shown = Jobs._show
    jobs._show = lambda job, picture: (seen.append(picture), shown(job, picture))
    job = finish(jobs.submit(load()))
    assert len(seen) == 3
    quiet = Jobs(places, previews=0.0)
    other = finish(quiet.submit(load()))
    quiet.close()
    assert np.array_equal(pixels(places.result(job.made[0].name)), pixels(places.result(other.made[0].name)))


def test_a_running_job_is_cancelled_within_one_step_and_leaves_the_pipeline_as_it_was(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny.pipeline()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    scheduler, hooks = pipe.scheduler, dict(pipe.unet._forward_hooks)
    monkeypatch.setattr(jobs._keeper, "pipeline", lambda *_: pipe)
    reached = threading.Event()
    step = jobs._step

    def slowly(job: Any, done: int) -> None:
        if done == 4:
            reached.set()
            job.stop.wait(20)
        step(job, done)

    jobs._step = slowly
    job = jobs.submit(load(steps=50))
    assert reached.wait(60)
    jobs.cancel(job.id)
    finish(job)
    assert (job.state, job.steps, job.made) == ("cancelled", 4, [])
    assert pipe.scheduler is scheduler
    assert "step" not in vars(scheduler)
    assert dict(pipe.unet._forward_hooks) == hooks
    assert all(np.array_equal(before[name], value) for name, value in pipe.unet.state_dict().items())
    jobs._step = step
    again = finish(jobs.submit(load()))
    (expected,) = ck.run(load())
    assert np.array_equal(pixels(jobs.places.result(again.made[0].name)), np.asarray(expected))


def test_a_waiting_job_is_cancelled_at_once(jobs: Any) -> None:
    first, second = jobs.submit(load(steps=20)), jobs.submit(load())
    assert jobs.ahead(second) >= 1
    jobs.cancel(second.id)
    assert second.state == "cancelled"
    jobs.cancel(first.id)
    finish(first)
    assert jobs.counts["cancelled"] == 2
    jobs.cancel(first.id)  # harmless
    assert jobs.counts["cancelled"] == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "hub:nobody/nothing"}, "hub:nobody/nothing"),
        ({"model": "file:absent"}, "absent"),
        ({"scheduler": "NoSuchScheduler"}, "NoSuchScheduler"),
        ({"controls": [{"guidance": "colour"}]}, "Did you mean color"),
    ],
)
def test_what_goes_wrong_is_one_plain_sentence(jobs: Any, changes: dict[str, Any], says: str) -> None:
    job = finish(jobs.submit(load(**changes)))
    assert job.state == "failed"
    assert says in job.error["message"]
    assert "\n" not in job.error["message"]
    assert jobs.counts["failed"] == 1


def test_an_unexpected_error_fails_the_job_and_not_the_worker(
    jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_keep", lambda *_: 1 / 0)
    job = finish(jobs.submit(load()))
    assert job.state == "failed"
    assert "ZeroDivisionError" in job.error["message"]
    monkeypatch.undo()
    assert not jobs._closed


def test_a_full_queue_is_refused_and_jobs_are_forgotten_in_order(places: Any) -> None:
    jobs = Jobs(places, Limits(waiting=2, kept=2))
    jobs._start = lambda: None  # nothing runs
    kept = [jobs.submit(load()), jobs.submit(load())]
    with pytest.raises(Refused, match="queue of 2") as refused:
        jobs.submit(load())
    assert (refused.value.status, refused.value.wait) == (429, 30)
    for job in kept:
        jobs.cancel(job.id)
    more = jobs.submit(load())
    jobs.cancel(more.id)
    assert [job.id for job in jobs.all()] == [kept[1].id, more.id]
    with pytest.raises(Refused) as gone:
        jobs.get(kept[0].id)
    assert gone.value.status == 404
    jobs.close()
    with pytest.raises(Refused, match="stopping"):
        jobs.submit(load())


@pytest.mark.parametrize(
    "changes", [{"steps": 999}, {"images": 17}, {"width": 4096}, {"width": 2048, "height": 2048}]
)
def test_too_much_is_refused(jobs: Any, changes: dict[str, int]) -> None:
    with pytest.raises(ck.ParameterError, match="at most"):
        jobs.submit(load(**changes))
    assert jobs.counts["submitted"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    ],
)
def test_the_last_prediction_is_nearly_the_picture(name: str) -> None:
    """At the last step almost no noise is left, so what is predicted there is what is made."""
    latents: list[Any] = []
    pipe = tiny.pipeline()
    decode = pipe.vae.decode

    def watched(z: Any, *args: Any, **options: Any) -> Any:
        latents.append(z)
        return decode(z, *args, **options)

    pipe.vae.decode = watched
    shown: list[Image.Image] = []
    wanted = load(scheduler=name, steps=8, controls=[], guidance_scale=1.0)
    list(results(wanted, pipe, watch=lambda it: watching(it, shown.append, lambda: False, 1.0)))
    assert len(shown) >= 8
    *previews, final = latents
    assert previews[-1].shape == final.shape
    last, first = ((final - one).pow(2).mean().sqrt() for one in (previews[-1], previews[0]))
    assert last < 0.5 * first


def test_watching_leaves_the_scheduler_as_it_was() -> None:
    pipe = tiny.pipeline()
    with watching(pipe, lambda _: None, lambda: True):
        assert "step" in vars(pipe.scheduler)
        with pytest.raises(Stopped):
            pipe("a house", num_inference_steps=2, width=64, height=64)
    assert "step" not in vars(pipe.scheduler)
    assert predicted(object(), object(), None, 0, None) is None


def test_what_is_kept_changes_nothing_and_is_bounded() -> None:
    keeper = Keeper(modules=1)
    (fresh,) = ck.run(load())
    for _ in range(2):
        (kept,) = results(load(), keeper=keeper)
        assert np.array_equal(np.asarray(kept.image), np.asarray(fresh))
    assert keeper._pipeline is not None
    others = [
        {"module": {"source": "embedded:controlnet-canny", "kind": f"kind{k}"}, "image": photo()}
        for k in range(4)
    ]
    for other in others:
        list(results(load(controls=[other]), keeper=keeper))
    assert len(keeper._loaded) <= 2
    keeper.forget()
    assert not keeper._loaded


def test_weights_that_change_on_disk_are_loaded_again(places: Any) -> None:
    keeper = Keeper()
    folder = places.models / "net"
    wanted = load(controls=[{"module": "file:net", "image": photo()}])
    pictures = []
    for seed in (1, 2):
        tiny.controlnet(seed=seed).save(folder)
        (made,) = results(wanted, models=places.models, keeper=keeper)
        pictures.append(np.asarray(made.image))
    assert not np.array_equal(*pictures)
