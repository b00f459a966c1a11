"""A process that makes maps: tasks as JSON lines on its input, results as JSON lines on its output.

It ends when its input does, so that none outlives the run that started it, however that ends.
"""

from __future__ import annotations

import json
import os
import signal


def main() -> None:
    """Work until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends the workers
    tasks = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)

    _one_thread()
    from controlkit.batch.making import from_plain, make
    from controlkit.errors import ControlKitError

    answers.write(_line({"state": "ready"}))
    while text := tasks.readline():
        try:
            for result in make(from_plain(json.loads(text))):
                answers.write(_line({"state": result.state, "line": result.line}))
            answers.write(_line({"state": "next"}))
        except ControlKitError as error:
            kind = type(error).__name__
            parts = [error.what, error.found, error.expected, error.fix, error.code]
            answers.write(_line({"state": "fatal", "kind": kind, "parts": parts}))
        except BrokenPipeError:
            return


def _line(values: dict[str, object]) -> bytes:
    return json.dumps(values).encode("ascii") + b"\n"


def _one_thread() -> None:
    """One thread a process: several workers, each with a thread for every core, are slower than one.

    Torch, which few detectors need, reads the variable when it is imported.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        pass
