"""Maps of many pictures, in several processes, going on where an earlier run was stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from controlkit.batch.cache import VARIABLE
from controlkit.batch.making import Result, Target, Task, make
from controlkit.batch.manifest import Manifest
from controlkit.batch.pool import Pool
from controlkit.batch.sources import Source, find
from controlkit.batch.versions import versions_of
from controlkit.batch.writing import clear_parts
from controlkit.errors import ParameterError
from controlkit.preprocessors import DetectorInfo, build, detectors
from controlkit.preprocessors.networks import identity

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many maps are done, and of how many."""

Options: TypeAlias = Mapping[str, Any]

FEW = 16
"""Below so many pictures, starting processes takes longer than what they save."""


@dataclass(frozen=True)
class Failure:
    """A map that could not be made.

    Args:
        source: The picture, as the manifest calls it.
        detector: Its name.
        message: Why.
    """

    source: str
    detector: str
    message: str


@dataclass
class FilesReport:
    """What a run did.

    Args:
        out: The folder of the maps.
        manifest: The file that lists them.
        made: How many maps were made.
        kept: How many were there already.
        failed: Those that could not be made.
    """

    out: Path
    manifest: Path
    made: int = 0
    kept: int = 0
    failed: list[Failure] = field(default_factory=list)


def preprocess_files(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    detectors: str | Sequence[str] | Mapping[str, Options],
    out: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    resolution: int | str | None = None,
    any_aspect: bool = False,
    workers: int | None = None,
    force: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FilesReport:
    """Make the control maps of many pictures.

    ``photos/a/b.jpg`` gets ``out/canny/a/b.png``, one folder for each detector. ``out/manifest.jsonl`` has
    one line for each map, with its source's SHA-256, options and versions, or the error. Called again, maps
    that are there are kept; one is made again where its picture, an option, or a version has changed. A run
    may be stopped at any moment, also by force: the same call goes on from there.

    Args:
        sources: Files, folders (searched to any depth) and globs.
        detectors: A name, several, or names with their options: ``{"canny": {"sigma": 1.5}, "blur": {}}``.
        out: The folder of the maps.
        size: As for `preprocess`.
        resolution: As for `preprocess`.
        any_aspect: As for `preprocess`.
        workers: Processes, each with one thread. 1: this one alone. None: one for each core, at most eight;
            and this one alone for few pictures, and where a detector has weights to load.
        force: Make every map again, and replace files that controlkit did not make.
        cache: A folder where maps are kept for other runs, up to 2 GB. None: the one that the environment
            variable ``CONTROLKIT_MAP_CACHE`` names; without it none.
        progress: Called with (done, all) after each map.

    Returns:
        How many were made, kept and failed. A picture that cannot be read is no exception.

    Raises:
        HintError: There is no such file or folder, or no picture in it.
        ParameterError: No such detector or option, or a value out of range.
        MissingExtra: A package that a detector needs is not installed.
        Busy: Another run writes into ``out``.
        SaveError: ``out`` cannot be written to, or is full.
        KeyboardInterrupt: Ctrl-C; what was under way is finished and listed first.
    """
    folder = Path(out)
    if workers is not None and (isinstance(workers, bool) or workers < 1):
        raise ParameterError("workers", found=repr(workers), expected="a whole number of at least 1")
    wanted = _wanted(detectors)
    pictures = find(sources, folder)
    manifest = Manifest(folder)
    report = FilesReport(folder, manifest.path)
    kept_in = os.fspath(cache) if cache is not None else os.environ.get(VARIABLE, "")
    total = len(pictures) * len(wanted)
    with closing(manifest):
        clear_parts(folder)
        tasks = (
            Task(
                path=str(picture.path.absolute()),
                source=picture.name,
                out=str(folder.absolute()),
                targets=tuple(_target(picture, *each, manifest) for each in wanted),
                resize=size,
                resolution=resolution,
                any_aspect=any_aspect,
                force=force,
                cache=str(Path(kept_in).absolute()) if kept_in else "",
            )
            for picture in pictures
        )
        heavy = any(info.needs_weights for info, _ in wanted)
        alone = heavy or len(pictures) < FEW
        count = min(len(pictures), workers or (1 if alone else min(8, _cores())))

        def record(results: Iterator[Result]) -> None:
            for result in results:
                _count(report, result, manifest)
                if progress is not None:
                    progress(report.made + report.kept + len(report.failed), total)

        if count == 1 or not sys.executable:
            record(result for task in tasks for result in make(task))
            return report
        pool = Pool(count)
        try:
            record(pool.run(tasks))
        except KeyboardInterrupt:
            record(pool.finish())
            raise
        finally:
            pool.kill()
    return report


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wanted(given: str | Sequence[str] | Mapping[str, Options]) -> list[tuple[DetectorInfo, dict[str, Any]]]:
    """Each detector with all its options, checked."""
    names = [given] if isinstance(given, str) else list(given)
    if not names:
        raise ParameterError("detectors", found="none", expected="at least one name")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ParameterError(
            "detectors",
            found=f"{twice} twice",
            expected="each once",
            fix="Two kinds of one detector go into two folders, by two runs.",
        )
    options: Mapping[str, Options] = given if isinstance(given, Mapping) else {name: {} for name in names}
    made = [build(name, **options[name]) for name in names]
    known = {info.name: info for info in detectors()}
    return [(known[each.name], asdict(each)) for each in made]  # pyright: ignore[reportArgumentType]


def _target(picture: Source, info: DetectorInfo, options: dict[str, Any], manifest: Manifest) -> Target:
    old = manifest.lines.get((info.name, picture.name))
    versions = versions_of(info)
    if info.needs_weights and (read := identity(str(options.get("weights", "")))):
        versions["weights"] = read
    return Target(info.name, options, versions, f"{info.name}/{picture.stem}.png", old)


def _count(report: FilesReport, result: Result, manifest: Manifest) -> None:
    line = result.line
    if result.state == "kept":
        report.kept += 1
        return
    manifest.append(line)
    if result.state == "made":
        report.made += 1
    else:
        report.failed.append(Failure(line["source"], line["detector"], line["error"]["message"]))
