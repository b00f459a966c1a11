"""Run tasks in worker processes, and survive those that die.

Plain child processes with pipes, not `multiprocessing`: nothing of the caller's program is run again in
them, each is known by the task it has, and all end with the run. A task whose worker died is tried once
more, one map at a time; a map that kills its worker twice is an error of that map.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from controlkit import errors
from controlkit.batch.making import Result, Task, as_plain

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_START = "import sys; sys.path[:] = {path!r}; from controlkit.batch.worker import main; main()"


class _Died(Exception):
    """A worker ended before it answered; holds what it had answered already."""

    def __init__(self, code: int | None, answered: int) -> None:
        super().__init__(code)
        self.code, self.answered = code, answered


class _Worker:
    def __init__(self) -> None:
        self._ready = False
        with _held_back():
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            )

    def run(self, task: Task, tell: Callable[[Result], None]) -> None:
        """Have a task done.

        Raises:
            _Died: The process is no more.
            ControlKitError: What would stop every other task too.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answered = 0
        if not self._ready:
            self._wait_until_ready()
        try:
            self._process.stdin.write(json.dumps(as_plain(task)).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise _Died(self._process.wait(), 0) from None
        while True:
            text = self._process.stdout.readline()
            if not text.endswith(b"\n"):
                raise _Died(self._process.wait(), answered)
            answer: dict[str, Any] = json.loads(text)
            if answer["state"] == "next":
                return
            if answer["state"] == "fatal":
                what, found, expected, fix, code = answer["parts"]
                kind = getattr(errors, answer["kind"], errors.ControlKitError)
                raise kind(what, found=found, expected=expected, fix=fix, code=code)
            tell(Result(answer["state"], answer["line"]))
            answered += 1

    def _wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline().endswith(b"\n"):
            code = self._process.wait()
            raise errors.ControlKitError(
                "workers",
                found=f"a process that ended while it started (exit code {code})",
                expected="room and rights for more processes",
                fix="What it said is above; or work in this process alone, with one worker.",
                code="CK-S2",
            )
        self._ready = True

    def end(self, *, now: bool = False) -> None:
        """Let it finish what it has, or not even that."""
        if now:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()


@contextmanager
def _held_back() -> Iterator[None]:
    """Keep Ctrl-C from a child that is just starting, which inherits that; this process gets it after."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Some worker processes.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._events: queue.Queue[Result | BaseException | None] = queue.Queue()
        self._running = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Have tasks done, in whatever order they get ready.

        Raises:
            ControlKitError: What would stop every task; those under way are finished.
        """
        waiting = iter(tasks)
        threads = [
            threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(self.count)
        ]
        self._running = len(threads)
        for thread in threads:
            thread.start()
        yield from self._results()

    def finish(self) -> Iterator[Result]:
        """After Ctrl-C: begin no more tasks, and give the results of those under way."""
        self._stop.set()
        yield from self._results()

    def _results(self) -> Iterator[Result]:
        problem: BaseException | None = None
        while self._running:
            try:
                event = self._events.get(timeout=0.5)  # with a timeout, Ctrl-C is heard on every system
            except queue.Empty:
                continue
            if event is None:
                self._running -= 1
            elif isinstance(event, Result):
                yield event
            else:
                self._stop.set()
                problem = problem or event
        if problem is not None:
            raise problem

    def kill(self) -> None:
        """End every worker at once."""
        self._stop.set()
        with self._lock:
            for worker in self._workers:
                worker.end(now=True)
            self._workers.clear()

    def _begin(self) -> _Worker:
        with self._lock:
            worker = _Worker()
            self._workers.add(worker)
        return worker

    def _end(self, worker: _Worker, *, now: bool = False) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.end(now=now)

    def _work(self, waiting: Iterator[Task]) -> None:
        worker: _Worker | None = None
        try:
            while not self._stop.is_set():
                with self._lock:
                    task = next(waiting, None)
                if task is None:
                    break
                worker = self._attempt(worker, task, tries=1)
        except BaseException as error:
            self._events.put(error)
        finally:
            if worker is not None:
                self._end(worker)
            self._events.put(None)

    def _attempt(self, worker: _Worker | None, task: Task, *, tries: int) -> _Worker | None:
        """Have one task done; the worker afterwards, None where it died."""
        worker = worker or self._begin()
        try:
            worker.run(task, self._events.put)
            return worker
        except _Died as death:
            self._end(worker, now=True)
            if self._stop.is_set():
                return None
            left = task.targets[death.answered :]
            if tries == 2:
                for target in left[:1]:
                    self._events.put(_killed(task, target.detector, death.code))
                left = left[1:]
            worker = None
            for target in left:
                worker = self._attempt(worker, replace(task, targets=(target,)), tries=2)
            return worker


def _killed(task: Task, detector: str, code: int | None) -> Result:
    target = next(each for each in task.targets if each.detector == detector)
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    message = (
        f"{task.source}: {detector} ended its process twice ({how}); out of memory, or a fault of a library"
    )
    line = {
        "source": task.source,
        "source_sha256": "",
        "detector": detector,
        "options": target.options,
        "resize": list(task.resize) if isinstance(task.resize, (tuple, list)) else task.resize,
        "versions": target.versions,
        "error": {"code": "CK-S2", "message": message},
    }
    return Result("failed", line)
