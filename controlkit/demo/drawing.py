"""Sampling for the demonstration: the same seeds with and without control, and how well each follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

import controlkit as ck
from controlkit.demo.sources import DemoSource

SEEDS = 4
GUIDANCE = 2.0
"""Low: in the small world a strong prompt costs adherence, and 2 keeps the colours right."""


@dataclass(frozen=True)
class Score:
    """How well pictures follow a map, averaged over them.

    Args:
        name: What is measured, such as ``edge F1``.
        controlled: With control; 1 is perfect.
        uncontrolled: Without, from the same seeds: what chance gives.
    """

    name: str
    controlled: float
    uncontrolled: float

    def __str__(self) -> str:
        return f"{self.name} {self.controlled:.2f} with control, {self.uncontrolled:.2f} without"


@dataclass(frozen=True)
class DemoRow:
    """One source with everything drawn from it."""

    source: DemoSource
    controlled: tuple[Image.Image, ...]
    uncontrolled: tuple[Image.Image, ...]
    score: Score


def draw(
    sources: tuple[DemoSource, ...],
    *,
    pipeline: Any = None,
    seed: int = 0,
    steps: int = 20,
    progress: Callable[[int], None] | None = None,
) -> Iterator[DemoRow]:
    """Draw each source's prompt four times with its control and four times without.

    Args:
        sources: What to follow.
        pipeline: In place of the embedded one.
        seed: Picture k of both kinds is made from ``seed + k``.
        steps: Denoising steps.
        progress: Called with the steps done so far, of ``total_steps``.
    """
    pipe = pipeline if pipeline is not None else ck.embedded.pipeline()
    pipe.set_progress_bar_config(disable=True)
    done = 0

    def step(_number: int, _done: int, _steps: int) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done)

    for source in sources:
        width, height = source.picture.size
        plain = ck.Recipe(
            prompt=source.prompt,
            seed=seed,
            steps=steps,
            guidance_scale=GUIDANCE,
            width=width,
            height=height,
            images=SEEDS,
        )
        control = {"module": f"embedded:{source.module}", "image": source.control_map}
        steered = ck.Recipe.load({**plain.model_dump(), "controls": [control]})
        controlled = tuple(ck.run(steered, pipe, progress=step))
        uncontrolled = tuple(ck.run(plain, pipe, progress=step))
        score = Score(source.score, source.measure(controlled), source.measure(uncontrolled))
        yield DemoRow(source, controlled, uncontrolled, score)


def total_steps(sources: tuple[DemoSource, ...], steps: int) -> int:
    """How many denoising steps `draw` takes in all."""
    return len(sources) * 2 * SEEDS * steps
