"""What a run did, per control: the answer to "was my control applied at all?"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlkit.contracts import Active


@dataclass(frozen=True)
class ReportRow:
    """One control.

    Args:
        control: Its name.
        runs: Calls of the pipeline it was attached for.
        steps: Steps of all those runs.
        applied: Steps in which it acted.
        skipped: Steps in which it did not act, and nothing of it ran.
        scale: Its scale, as ``0.9`` or ``0.2 .. 1``.
        norm: Root mean square of what it added, over the steps in which it acted; None if it never did.
        norms: The same for each such step, in order.
        counts: Work done: ``hint`` is how often its map was encoded, ``forward`` how often its network ran.
        notes: Resizing, casts and warnings, in words.
    """

    control: str
    runs: int
    steps: int
    applied: int
    skipped: int
    scale: str
    norm: float | None
    norms: tuple[float, ...]
    counts: dict[str, int]
    notes: tuple[str, ...]


@dataclass
class ControlRecord:
    """What `ReportRow` is made from; written by the engine while it runs."""

    control: str
    runs: int = 0
    steps: int = 0
    applied: int = 0
    scales: set[float] = field(default_factory=set[float])
    norms: list[float] = field(default_factory=list[float])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])
    live: Active | None = None

    def begin(self, plan: tuple[float, ...]) -> None:
        self.runs += 1
        self.scales.update(plan)

    def step(self, *, applied: bool) -> None:
        self.steps += 1
        self.applied += applied

    def norm(self, value: float) -> None:
        self.norms.append(value)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def finish(self) -> None:
        self.counts, self.live = self._all_counts(), None

    def _all_counts(self) -> dict[str, int]:
        now = self.live.counts if self.live is not None else {}
        return {key: self.counts.get(key, 0) + now.get(key, 0) for key in {**self.counts, **now}}

    def row(self) -> ReportRow:
        acting = sorted(scale for scale in self.scales if scale) or [0.0]
        low, high = acting[0], acting[-1]
        mean = (sum(n * n for n in self.norms) / len(self.norms)) ** 0.5 if self.norms else None
        return ReportRow(
            control=self.control,
            runs=self.runs,
            steps=self.steps,
            applied=self.applied,
            skipped=self.steps - self.applied,
            scale=f"{low:g}" if low == high else f"{low:g} .. {high:g}",
            norm=mean,
            norms=tuple(self.norms),
            counts=self._all_counts(),
            notes=tuple(self.notes),
        )


@dataclass(frozen=True)
class Report:
    """A table, one row per control, in the order attached. Prints as text; `.rows` for programs."""

    rows: tuple[ReportRow, ...]

    def __str__(self) -> str:
        if not self.rows:
            return "no controls attached"
        head = ("control", "applied", "skipped", "scale", "added (rms)", "notes")
        table = [head] + [
            (
                row.control,
                f"{row.applied} of {row.steps}",
                str(row.skipped),
                row.scale,
                "-" if row.norm is None else f"{row.norm:.3g}",
                "; ".join(row.notes) or "-",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(head) - 1)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
            for line in table
        )
