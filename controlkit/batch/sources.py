"""Which pictures are meant by files, folders and globs, and what their maps are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlkit.errors import HintError, ParameterError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"))
"""Names that end so are pictures; the content decides how they are read."""


@dataclass(frozen=True)
class Source:
    """One picture.

    Args:
        path: Where it is.
        name: Its path below the root, with ``/`` between names: how the manifest calls it.
        stem: The same for its map, without ``.png``.
    """

    path: Path
    name: str
    stem: str


def is_pattern(text: str) -> bool:
    """Whether a text is a glob, and not the name of something that is there."""
    return glob.has_magic(text) and not os.path.lexists(text)


def find(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: Path) -> list[Source]:
    """The pictures that are meant, each once, in order of their names.

    A folder is searched to any depth and is the root of what it holds; the root of a glob is the folder
    before its first wildcard; a file's root is its folder. Hidden files and folders, links to folders, and
    ``out`` are passed over.

    Args:
        given: A file, a folder or a glob, or several.
        out: The folder of the maps.

    Raises:
        HintError: A file or folder is not there, or there is no picture at all.
        ParameterError: Two roots hold pictures of the same name.
    """
    entries = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    found: dict[str, Path] = {}
    for entry in entries:
        root, paths = _expand(os.fspath(entry), out.resolve())
        for path in paths:
            name = path.relative_to(root).as_posix()
            if not _same(found.setdefault(name, path), path):
                raise ParameterError(
                    "sources",
                    found=f"two pictures called {name}: {found[name]} and {path}",
                    expected="one picture a name",
                    fix="Make their maps in two runs, into two folders.",
                )
    if not found:
        raise HintError(
            ", ".join(os.fspath(entry) for entry in entries)[:160] or "sources",
            found="no pictures",
            expected=f"files that end in {', '.join(sorted(SUFFIXES))}",
            fix="Check the path; a glob must be quoted, or the shell takes it first.",
            code="CK-H22",
        )
    return _named(found)


def _same(one: Path, other: Path) -> bool:
    return one == other or one.resolve() == other.resolve()


def _expand(text: str, out: Path) -> tuple[Path, list[Path]]:
    path = Path(text)
    if path.is_dir():
        return path, list(_walk(path, out))
    if is_pattern(text):
        parts = path.parts
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:first])
        matched = (Path(name) for name in glob.iglob(text, recursive=True))
        return root, [each for each in matched if _is_picture(each) and out not in each.resolve().parents]
    if not os.path.lexists(text):
        raise HintError(
            text[:160],
            found="no such file or folder",
            expected="a picture, a folder, or a glob",
            fix="Check the path and the working folder.",
            code="CK-H22",
        )
    return path.parent, [path]


def _walk(root: Path, out: Path) -> Iterable[Path]:
    for folder, inside, files in os.walk(root):
        here = Path(folder)
        inside[:] = [name for name in inside if name[0] != "." and (here / name).resolve() != out]
        yield from (here / name for name in files if _is_picture(here / name))


def _is_picture(path: Path) -> bool:
    return path.name[0] != "." and path.suffix.lower() in SUFFIXES and path.is_file()


def _named(found: dict[str, Path]) -> list[Source]:
    """``a.jpg`` has the map ``a.png``; where ``a.bmp`` lies beside it, ``a.jpg.png`` and ``a.bmp.png``.

    Names that differ only by upper and lower case count as the same, as some file systems have it.
    """
    without = {name: name[: -len(Path(name).suffix)] if Path(name).suffix else name for name in found}
    counts: dict[str, int] = {}
    for short in without.values():
        counts[short.casefold()] = counts.get(short.casefold(), 0) + 1
    stems = {name: short if counts[short.casefold()] == 1 else name for name, short in without.items()}
    taken: dict[str, int] = {}
    for stem in stems.values():
        taken[stem.casefold()] = taken.get(stem.casefold(), 0) + 1
    # "a.jpg" beside "a.png" and "a.jpg.gif": the last one's short name is the first one's long name.
    stems = {name: stem if taken[stem.casefold()] == 1 else name for name, stem in stems.items()}
    return [Source(found[name], name, stems[name]) for name in sorted(found)]
