"""Where a detector's weight files are: in a folder, a file of the user's, or on the hub."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from controlkit.errors import DownloadError, FileError, ParameterError


def files_of(
    detector: str, weights: str, names: tuple[str, ...], *, revision: str = "", local_files_only: bool = False
) -> tuple[Path, ...]:
    """Find, or fetch, the files of a detector.

    Args:
        detector: Its name, for errors.
        weights: A folder that holds them; a single file, under any name, in place of the first of ``names``
            (the others beside it); or a hub id.
        names: Paths below the folder or in the repository; in a folder the last part alone will do.
        revision: Branch, tag or commit on the hub; empty: the main branch.
        local_files_only: Do not connect.

    Returns:
        One path for each name.

    Raises:
        ParameterError: ``weights`` is empty.
        FileError: A file is not there.
        DownloadError: No such repository, revision or file, or no connection and nothing cached.
    """
    if not weights:
        raise ParameterError(
            f"{detector}: weights",
            found="nothing",
            expected="a hub id, a folder, or a file",
            fix=f"It needs {', '.join(names)}.",
        )
    found = local_files(weights, names)
    if found is None:
        folder = _fetched(weights, names, revision, local_files_only)
        found = tuple(_in(folder, name) for name in names)
    missing = [name for name, path in zip(names, found, strict=True) if not path.is_file()]
    if missing:
        raise FileError(
            f"{detector}: weights",
            found=f"{weights} without {', '.join(missing)}",
            expected=f"the files {', '.join(names)}",
            fix="Put them there, or give the folder that has them.",
        )
    return found


def local_files(weights: str, names: tuple[str, ...]) -> tuple[Path, ...] | None:
    """Where the files would be, whether they are there or not; None where ``weights`` is no local place."""
    try:
        place = Path(weights).expanduser()
        if place.is_file():
            return (place, *(_in(place.parent, name) for name in names[1:]))
        return tuple(_in(place, name) for name in names) if place.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or no such user
        return None


def _in(folder: Path, name: str) -> Path:
    whole = folder / name
    return whole if whole.is_file() else folder / PurePosixPath(name).name


def _fetched(weights: str, names: tuple[str, ...], revision: str, local_files_only: bool) -> Path:
    """The root of a repository's copy with the files in it, all of one commit."""
    from controlkit.checkpoints.hub import fetch
    from controlkit.checkpoints.sources import is_hub_id

    if not is_hub_id(weights):
        raise FileError(
            weights,
            found="nothing there",
            expected="a folder, a file, or a hub id such as lllyasviel/Annotators",
            fix="Check the path.",
        )

    def only(name: str, there: Collection[str]) -> str:
        if name not in there:
            raise DownloadError(
                f"{weights} on the hub",
                found=f"no file {name}",
                expected="a repository that has it",
                fix="Check the name and the revision.",
            )
        return name

    folder, commit = Path(), revision or None
    for name in names:
        fetched = fetch(
            weights,
            lambda there, name=name: only(name, there),
            revision=commit,
            local_files_only=local_files_only,
        )
        folder = fetched.folder
        commit = folder.name
    return folder
