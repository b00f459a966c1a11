"""The maps of one picture: read once, each map written whole, and nothing made that is there already."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from controlkit.batch.cache import MapCache
from controlkit.batch.writing import write_whole
from controlkit.errors import (
    ControlKitError,
    ControlKitWarning,
    HintError,
    HintTooBig,
    MissingExtra,
    SaveError,
)
from controlkit.images import as_saved, open_image
from controlkit.preprocessors import Detector, build, preprocess

CHUNK = "controlkit-map"
"""Keyword of the PNG text that says what a map was made of, and that controlkit made it."""

MAX_FILE = 1 << 30
_HOPELESS = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True)
class Target:
    """One map that is wanted.

    Args:
        detector: Its name.
        options: All its options.
        versions: Of what it depends on.
        map: Its path below the folder of the maps.
        old: The manifest's line about it, if there is one.
    """

    detector: str
    options: dict[str, Any]
    versions: dict[str, str]
    map: str
    old: dict[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """One picture, and the maps that are wanted of it; plain values, so that it can go to another process.

    Args:
        path: Of the picture.
        source: How the manifest calls it.
        out: The folder of the maps.
        targets: The maps.
        resize: The ``size`` of `preprocess`.
        resolution: As for `preprocess`.
        any_aspect: As for `preprocess`.
        force: Make maps that are there again, and replace files that controlkit did not make.
        cache: A folder of maps of other runs; empty: none.
    """

    path: str
    source: str
    out: str
    targets: tuple[Target, ...] = field(default=())
    resize: int | tuple[int, int] | None = None
    resolution: int | str | None = None
    any_aspect: bool = False
    force: bool = False
    cache: str = ""


@dataclass(frozen=True)
class Result:
    """What came of one map: ``made``, ``kept`` (it was there) or ``failed``; its line for the manifest."""

    state: str
    line: dict[str, Any]


def make(task: Task) -> Iterator[Result]:
    """Make the maps of one picture that are not there yet.

    Yields:
        A result for each target, as soon as there is one.

    Raises:
        MissingExtra, SaveError: What would stop every other picture too.
    """
    digest, content, problem = "", b"", None
    try:
        content = _read(Path(task.path), task.source)
        digest = hashlib.sha256(content).hexdigest()
    except (ControlKitError, OSError) as error:
        problem = error
    photo: Image.Image | None = None
    notes: list[str] = []
    for target in task.targets:
        about = _about(task, target, digest)
        if not task.force and not problem and _is_made(task, target, about):
            yield Result("kept", target.old or {})
            continue
        try:
            if problem:
                raise problem
            png = _cached(task, about)
            if png is None:
                if photo is None:
                    photo = open_image(_named(content, task.source), notes=notes)
                png = _drawn(photo, task, about, notes)
                if task.cache:
                    _cache(task.cache).put(_key(about), png)
            yield Result("made", _placed(png, task, target, about))
        except (MissingExtra, SaveError):
            raise
        except Exception as error:
            problem = error if photo is None else None  # the picture itself, or this detector only
            yield Result("failed", {**about, "error": _told(error)})


def _about(task: Task, target: Target, digest: str) -> dict[str, Any]:
    return {
        "source": task.source,
        "source_sha256": digest,
        "detector": target.detector,
        "options": target.options,
        "resize": list(task.resize) if isinstance(task.resize, (tuple, list)) else task.resize,
        "resolution": task.resolution,
        "versions": target.versions,
    }


def _read(path: Path, what: str) -> bytes:
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        raise HintError(what, found=f"a path that cannot be read ({error})"[:160], code="CK-H22") from error
    if not stat.S_ISREG(about.st_mode):
        raise HintError(what, found="not a regular file", expected="a picture file", code="CK-H22")
    if about.st_size > MAX_FILE:
        raise HintTooBig(what, found=f"a file of {about.st_size / 1e9:.1f} GB", expected="at most 1 GB")
    return path.read_bytes()


class _Stream(io.BytesIO):
    name: str


def _named(content: bytes, name: str) -> io.BytesIO:
    stream = _Stream(content)
    stream.name = name
    return stream


def _is_made(task: Task, target: Target, about: dict[str, Any]) -> bool:
    old = target.old
    if not old or "error" in old or old.get("map") != target.map:
        return False
    if any(old.get(name) != value for name, value in about.items()):
        return False
    try:
        return os.stat(Path(task.out, target.map)).st_size == old.get("bytes")
    except OSError:
        return False


@cache
def _detector(name: str, options: str) -> Detector:
    return build(name, **json.loads(options))


@cache
def _cache(folder: str) -> MapCache:
    return MapCache(folder)


def _key(about: dict[str, Any]) -> str:
    """Of everything that decides the map's pixels; where the picture lies does not."""
    parts = {name: value for name, value in about.items() if name != "source"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cached(task: Task, about: dict[str, Any]) -> bytes | None:
    return _cache(task.cache).get(_key(about)) if task.cache else None


def _drawn(photo: Image.Image, task: Task, about: dict[str, Any], notes: list[str]) -> bytes:
    detector = _detector(about["detector"], json.dumps(about["options"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ControlKitWarning)  # they are in the manifest, as notes
        drawn = preprocess(
            photo, detector, size=task.resize, resolution=task.resolution, any_aspect=task.any_aspect
        )
    told = drawn.info["controlkit"]
    facts = {name: value for name, value in about.items() if name != "source"}
    facts |= {"size": list(drawn.size), "empty": told["empty"], "notes": [*notes, *told["notes"]]}
    return encode(drawn, facts)


def encode(drawn: Image.Image, facts: dict[str, Any]) -> bytes:
    """A map as PNG, with what it was made of as text."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(CHUNK, json.dumps(facts, sort_keys=True, ensure_ascii=False))
    picture, more = as_saved(drawn)
    for keyword, text in more.items():
        info.add_itxt(keyword, text)
    clean = picture.copy()
    clean.info = {}
    buffer = io.BytesIO()
    clean.save(buffer, format="PNG", pnginfo=info, compress_level=4)
    return buffer.getvalue()


def facts_of(png: bytes | Path) -> dict[str, Any] | None:
    """What a map says that it was made of; None where controlkit did not make it."""
    try:
        with Image.open(io.BytesIO(png) if isinstance(png, bytes) else png, formats=["PNG"]) as picture:
            facts = json.loads(str(picture.info[CHUNK]))
    except (OSError, ValueError, KeyError, SyntaxError):
        return None
    return facts if isinstance(facts, dict) else None


def _placed(png: bytes, task: Task, target: Target, about: dict[str, Any]) -> dict[str, Any]:
    path = Path(task.out, target.map)
    if path.exists() and not task.force and facts_of(path) is None:
        raise HintError(
            target.map,
            found="a file there that controlkit did not make, or that was changed since",
            expected="a free name",
            fix="Move it away, choose another folder, or use force to replace it.",
            code="CK-S6",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, png)
    except OSError as error:
        kind = SaveError if error.errno in _HOPELESS else HintError
        raise kind(
            target.map,
            found=(error.strerror or str(error)).lower(),
            expected="a folder that can be written to, with room",
            fix="What is made is whole; the same call goes on from it.",
            code="CK-S5",
        ) from error
    if target.old and target.old.get("map", target.map) != target.map:
        _remove(Path(task.out, target.old["map"]))  # the same map under its former name
    facts = facts_of(png) or {}
    told = {name: facts.get(name) for name in ("size", "empty", "notes")}
    return {**about, **told, "map": target.map, "bytes": len(png)}


def _remove(former: Path) -> None:
    if former.is_file() and facts_of(former) is not None:
        former.unlink(missing_ok=True)


def _told(error: BaseException) -> dict[str, str]:
    if isinstance(error, ControlKitError):
        return {"code": error.code, "message": str(error)}
    cause = " ".join(str(error).split())[:200]
    return {"code": "CK", "message": f"{type(error).__name__}: {cause}" if cause else type(error).__name__}


def as_plain(task: Task) -> dict[str, Any]:
    """A task as values that JSON holds."""
    return asdict(task)


def from_plain(values: dict[str, Any]) -> Task:
    """A task from `as_plain`, also by way of JSON."""
    resize = values["resize"]
    return Task(
        **{
            **values,
            "targets": tuple(Target(**each) for each in values["targets"]),
            "resize": tuple(resize) if isinstance(resize, list) else resize,
        }
    )
