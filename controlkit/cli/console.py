"""What commands print with: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from controlkit.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

stdout = Console(soft_wrap=True, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def complain(sentence: str) -> None:
    """One plain sentence on stderr."""
    typer.echo(f"controlkit: {' '.join(sentence.split())}", err=True)


def emit_json(value: Any) -> None:
    """JSON on stdout, for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(*headings: str, rows: list[tuple[str, ...]]) -> None:
    """A table on stdout."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*row)
    Console(highlight=False, markup=False).print(made)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; the block calls what it gets with the number done, and of how many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bars:
        task = bars.add_task(label, total=total or None)
        yield lambda done, of=None: bars.update(task, completed=done, total=of or None)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``512`` or ``768x512`` (width x height) as (width, height).

    Raises:
        ParameterError: It is neither.
    """
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    try:
        return int(width), int(height or width)
    except ValueError:
        raise ParameterError(
            "--size",
            found=repr(text),
            expected="pixels, such as 512 or 768x512 (width x height)",
            code="CK-P2",
        ) from None


def parse_value(text: str) -> Any:
    """An option's value: JSON where it is JSON (numbers, true, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def output_path(out: Path | None, default: str) -> Path:
    """Where to write: ``out``, or ``default`` in the folder ``out``, or ``default`` in the working folder."""
    if out is None:
        return Path(default)
    if out.is_dir() or (not out.suffix and not out.exists()):
        return out / default
    return out
