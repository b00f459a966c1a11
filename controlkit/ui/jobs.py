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
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from controlkit.errors import ControlKitError, ParameterError
from controlkit.recipes import Keeper, ModelRecipe, Recipe, Result, png_bytes, results, write
from controlkit.ui.errors import Refused, as_plain
from controlkit.ui.places import Places
from controlkit.ui.sampling import SHARE, Stopped, watching

if TYPE_CHECKING:
    from PIL import Image

_LOG = logging.getLogger(__name__)

State = Literal["waiting", "loading", "running", "done", "failed", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Limits:
    """What one job, and the server as a whole, may ask for.

    Args:
        side: Longest side of a picture in pixels.
        pixels: Most pixels of a picture.
        steps: Most steps.
        images: Most pictures of a job.
        controls: Most controls of a job.
        waiting: Most jobs in the queue.
        kept: Finished jobs that are remembered.
    """

    side: int = 2048
    pixels: int = 2048 * 1536
    steps: int = 250
    images: int = 16
    controls: int = 12
    waiting: int = 32
    kept: int = 100

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that asks for more.

        Raises:
            ParameterError: It does.
        """
        asked = {
            "steps": (recipe.steps, self.steps),
            "images": (recipe.images, self.images),
            "controls": (len(recipe.controls), self.controls),
            "width": (recipe.width or 0, self.side),
            "height": (recipe.height or 0, self.side),
            "width x height": ((recipe.width or 0) * (recipe.height or 0), self.pixels),
        }
        for name, (found, most) in asked.items():
            if found > most:
                raise ParameterError(
                    name,
                    found=f"{found:,}",
                    expected=f"at most {most:,} on this server",
                    fix="Use the command line for more.",
                    code="CK-P2",
                )
        for number, part in enumerate(recipe.controls):
            repeats = getattr(part, "inner_steps", 1) * getattr(part, "recurrence", 1)
            if repeats > 64:
                raise ParameterError(
                    f"controls[{number}]", found=f"{repeats} repeats of a step", expected="at most 64"
                )


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
    """

    name: str
    seed: int
    width: int
    height: int
    report: tuple[dict[str, Any], ...]
    text: str


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

    def submit(self, recipe: Recipe) -> Job:
        """Put a recipe at the end of the queue.

        Raises:
            ControlKitError: It asks for too much, or leads outside; or the queue is full (429).
        """
        self.limits.check(self.places.vetted(recipe))
        job = Job(secrets.token_hex(8), recipe.steps * recipe.images, recipe)
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
        recipe = job.recipe
        assert recipe is not None
        try:
            made = results(
                recipe,
                models=self.places.models,
                keeper=self._keeper,
                progress=lambda number, done, steps: self._step(job, number * steps + done),
                watch=lambda pipe: watching(
                    pipe, lambda seen: self._show(job, seen), job.stop.is_set, self._previews
                ),
            )
            for result in made:
                self._keep(job, result)
                if job.stop.is_set() and len(job.made) < recipe.images:
                    return "cancelled", None
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

    def _keep(self, job: Job, result: Result) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        target = self.places.output / f"{stamp}-{result.recipe.seed}.png"
        path = write(target, png_bytes(result.image, result.recipe), number=True)
        rows = tuple(asdict(row) for row in result.report.rows)
        size = result.image.size
        job.made.append(Made(path.name, result.recipe.seed, *size, rows, str(result.report)))
        job.version += 1

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
