"""Recipes made one after the other: a queue, one worker, and an account of every job.

Needs no web server. A job ends in one of three ways: ``done``, ``failed`` with one plain sentence,
``cancelled``. The pipeline is afterwards what it was. Memory is bounded: the queue has a length, a finished
job keeps no picture and no recipe (both are in its file), and of finished jobs the last are remembered.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from controlkit.errors import ControlKitError
from controlkit.recipes import Keeper, ModelRecipe, Recipe, Result, png_bytes, results, write
from controlkit.ui import captions, warming
from controlkit.ui.errors import Refused, as_plain
from controlkit.ui.limits import Limits
from controlkit.ui.places import Places
from controlkit.ui.sampling import SHARE, Stopped, watching
from controlkit.ui.sheet import Sheet
from controlkit.ui.sweep import Sweep, title_of

if TYPE_CHECKING:
    from PIL import Image

    from controlkit.evaluation.scoring import Scorer

__all__ = ["FINISHED", "Job", "Jobs", "Limits", "Made", "State"]

_LOG = logging.getLogger(__name__)

State = Literal["waiting", "loading", "running", "done", "failed", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Made:
    """A picture of a job.

    Args:
        name: Of its file in the output folder.
        seed: It was made from.
        width: In pixels.
        height: In pixels.
        report: What each control did, one dictionary each.
        text: The same as a table.
        adherence: How well it follows the map of each control (`controlkit.evaluation.scoring`).
    """

    name: str
    seed: int
    width: int
    height: int
    report: tuple[dict[str, Any], ...]
    text: str
    adherence: tuple[dict[str, Any], ...] = ()


@dataclass
class Job:
    """One recipe on its way; read it, and leave writing to `Jobs`.

    Attributes:
        id: Its name.
        state: Where it is.
        steps: Steps done, of all its pictures.
        total: Steps of all its pictures.
        made: Its pictures so far.
        error: What went wrong, where it failed.
        preview: The predicted picture of the step at hand, while it runs.
        version: Grows with every change.
        sweep: The grid that it makes, where it makes one.
        count: Pictures that it makes.
        sheet: Name of the contact sheet of a grid, once it is written.
    """

    id: str
    total: int
    recipe: Recipe | None
    state: State = "waiting"
    steps: int = 0
    made: list[Made] = field(default_factory=list[Made])
    error: dict[str, str] | None = None
    preview: Image.Image | None = None
    version: int = 0
    sweep: Sweep | None = None
    count: int = 1
    sheet: str = ""
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in FINISHED

    def as_plain(self) -> dict[str, Any]:
        """The job as plain data, without the preview."""
        return {
            "id": self.id,
            "state": self.state,
            "steps": self.steps,
            "total": self.total,
            "results": [asdict(made) for made in self.made],
            **({"sheet": self.sheet or None} if self.sweep else {}),
            "error": self.error,
            "seconds": round((self.ended or time.time()) - self.started, 3) if self.started else None,
        }


class Jobs:
    """The queue and its worker.

    Args:
        places: Where pictures go and weights come from.
        limits: What may be asked for.
        previews: Most of the time that previews may take; 0: none.
    """

    def __init__(self, places: Places, limits: Limits | None = None, previews: float = SHARE) -> None:
        self.places, self.limits, self._previews = places, limits or Limits(), previews
        self._keeper = Keeper()
        self._queue: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._wake = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False
        self._warm: str | None = None
        self.counts: dict[str, int] = {"submitted": 0, "done": 0, "failed": 0, "cancelled": 0}

    def submit(self, recipe: Recipe, sweep: Sweep | None = None) -> Job:
        """Put a recipe at the end of the queue.

        Args:
            recipe: What to make.
            sweep: Make a grid of it: a picture for each scale and seed, and a contact sheet.

        Raises:
            ControlKitError: It asks for too much, or leads outside; or the queue is full (429).
        """
        self.limits.check(self.places.vetted(recipe))
        count = len(sweep.recipes(recipe)) if sweep else recipe.images
        job = Job(secrets.token_hex(8), recipe.run_steps * count, recipe, sweep=sweep, count=count)
        with self._wake:
            if self._closed:
                raise Refused("jobs", found="a server that is stopping", expected="one that runs", status=409)
            if len(self._queue) >= self.limits.waiting:
                raise Refused(
                    "jobs",
                    found=f"{len(self._queue)} waiting",
                    expected=f"room in a queue of {self.limits.waiting}",
                    fix="Try again in a while.",
                    status=429,
                    wait=30,
                )
            self._jobs[job.id] = job
            self._queue.append(job)
            self.counts["submitted"] += 1
            self._start()
        return job

    def warm(self, model: str) -> None:
        """Load an embedded model before the first job; others wait until they are asked for."""
        with self._wake:
            if model.startswith("embedded:") and self._worker is None and not self._closed:
                self._warm = model
                self._start()

    def _start(self) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="controlkit-jobs", daemon=True)
            self._worker.start()
        self._wake.notify_all()

    def get(self, key: str) -> Job:
        """A job by its name.

        Raises:
            Refused: No such job, or one that was forgotten (404).
        """
        job = self._jobs.get(key)
        if job is None:
            raise Refused("job", found=repr(key)[:40], expected="a job of this server", status=404)
        return job

    def all(self) -> list[Job]:
        """The jobs that are remembered, the oldest first."""
        with self._wake:
            return list(self._jobs.values())

    def cancel(self, key: str) -> Job:
        """End a job: at once where it waits, within one step where it runs; harmless where it has ended."""
        job = self.get(key)
        with self._wake:
            job.stop.set()
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, "cancelled")
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs are made before this one."""
        with self._wake:
            waiting = list(self._queue)
        return waiting.index(job) + 1 if job in waiting else 0

    def close(self, timeout: float = 60.0) -> None:
        """Cancel everything and end the worker."""
        with self._wake:
            self._closed = True
            for job in list(self._queue):
                self._end(job, "cancelled")
            self._queue.clear()
            for job in self._jobs.values():
                job.stop.set()
            self._wake.notify_all()
        if self._worker is not None:
            self._worker.join(timeout)
        self._keeper.forget()

    def _work(self) -> None:
        if self._warm is not None:
            with contextlib.suppress(Exception):  # a job says what is wrong
                warming.imported()
                self._keeper.pipeline(ModelRecipe(source=self._warm), self.places.files)
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                job = self._queue.popleft()
                job.state, job.started = "loading", time.time()
                job.version += 1
            state, error = self._run(job)
            with self._wake:
                job.error = error
                self._end(job, state)

    def _run(self, job: Job) -> tuple[State, dict[str, str] | None]:
        recipe, sweep = job.recipe, job.sweep
        assert recipe is not None
        sheet = _sheet(recipe, sweep) if sweep else None
        try:
            scorer = _scorer(self.places)
            for number, one in enumerate(sweep.recipes(recipe) if sweep else [recipe]):
                for result in self._results(job, one, number * one.run_steps):
                    self._keep(job, result, scorer)
                    if sheet is not None:
                        sheet.add(result.image, captions.brief(job.made[-1].adherence))
                    if job.stop.is_set() and len(job.made) < job.count:
                        return "cancelled", None
            if sheet is not None and sweep is not None:
                self._write_sheet(job, sheet.drawn(), sweep.chunk(recipe))
            return "done", None
        except Stopped:
            return "cancelled", None
        except ControlKitError as error:
            return "failed", as_plain(error)
        except MemoryError:
            return "failed", as_plain(Refused("memory", found="not enough", fix="Make smaller pictures."))
        except Exception as error:
            _LOG.exception("job %s failed", job.id)
            first = " ".join((str(error).strip() or "no message").splitlines()[0].split())[:200]
            return "failed", as_plain(ControlKitError("run", found=f"{type(error).__name__}: {first}"))

    def _results(self, job: Job, recipe: Recipe, before: int) -> Iterator[Result]:
        """The pictures of a recipe of a job, of which so many steps were done before."""
        return results(
            recipe,
            models=self.places.models,
            keeper=self._keeper,
            progress=lambda number, done, steps: self._step(job, before + number * steps + done),
            watch=lambda pipe: watching(
                pipe, lambda seen: self._show(job, seen), job.stop.is_set, self._previews
            ),
        )

    def _keep(self, job: Job, result: Result, scorer: Scorer) -> None:
        scores = scorer.scores(result.recipe, result.image)
        content = png_bytes(result.image, result.recipe, captions.chunk(scores))
        path = self._write(str(result.recipe.seed), content)
        rows = tuple(asdict(row) for row in result.report.rows)
        size = result.image.size
        made = Made(path.name, result.recipe.seed, *size, rows, str(result.report), tuple(scores))
        job.made.append(made)
        job.preview = None
        job.version += 1

    def _write_sheet(self, job: Job, picture: Image.Image, chunk: dict[str, str]) -> None:
        job.sheet = self._write("grid", png_bytes(picture, None, chunk)).name
        job.version += 1

    def _write(self, name: str, content: bytes) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return write(self.places.output / f"{stamp}-{name}.png", content, number=True)

    def _step(self, job: Job, done: int) -> None:
        job.state, job.steps = "running", done
        job.version += 1
        if job.stop.is_set():
            raise Stopped

    @staticmethod
    def _show(job: Job, picture: Image.Image) -> None:
        job.state, job.preview = "running", picture
        job.version += 1

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended, job.recipe, job.preview = state, time.time(), None, None
        job.version += 1
        self.counts[state] += 1
        job.over.set()
        finished = [key for key, other in self._jobs.items() if other.finished]
        for key in finished[: max(0, len(finished) - self.limits.kept)]:
            del self._jobs[key]


def _scorer(places: Places) -> Scorer:
    from controlkit.evaluation.scoring import Scorer

    return Scorer(places.files)


def _sheet(recipe: Recipe, sweep: Sweep) -> Sheet:
    part = recipe.controls[sweep.control]
    word = "curve x" if isinstance(part.scale, tuple) else "scale"
    title = f"{title_of(recipe, sweep)}: {word} by seed"
    size = f"{recipe.width} x {recipe.height}, " if recipe.width and recipe.height else ""
    details = f"{recipe.prompt} ({size}{recipe.steps} steps, guidance {recipe.guidance_scale:g})"
    columns = [f"{word} {scale:g}" for scale in sweep.scales]
    return Sheet(title, details, columns, [f"seed {seed}" for seed in sweep.seeds])
