"""Which versions a detector's maps depend on: of its own package, and of what that needs for it."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from controlkit import __version__
from controlkit.preprocessors import DetectorInfo

_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


def versions_of(info: DetectorInfo) -> dict[str, str]:
    """Distribution name to version; empty where one is not installed."""
    found = {info.owner: __version__ if info.owner == "controlkit" else installed(info.owner)}
    for name in requirements(info.extra):
        found[name] = installed(name)
    return found


def missing_for(info: DetectorInfo) -> list[str]:
    """The distributions that a detector needs and that are not installed."""
    return [name for name in requirements(info.extra) if not installed(name)]


@cache
def requirements(extra: str) -> tuple[str, ...]:
    """Distributions in what ``pip install`` takes; an extra of controlkit is what it stands for."""
    names: list[str] = []
    for entry in re.split(r"[\s,]+(?![^\[]*\])", extra.strip()):
        match = re.match(r"([A-Za-z0-9][\w.-]*)(?:\[([\w,\s-]+)\])?", entry)
        if match is None:
            continue
        name, extras = match.group(1), match.group(2)
        if name.lower() == "controlkit":
            names += [each for one in (extras or "").split(",") for each in _of_extra(one.strip())]
        else:
            names.append(name)
    return tuple(dict.fromkeys(names))


def _of_extra(extra: str) -> list[str]:
    try:
        lines = requires("controlkit") or []
    except PackageNotFoundError:
        return []
    marked = [line for line in lines if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", line)]
    return [match.group() for line in marked if (match := re.match(r"[A-Za-z0-9][\w.-]*", line))]


@cache
def installed(name: str) -> str:
    """The version of a distribution, empty where it is not installed; any OpenCV counts as OpenCV."""
    for each in dict.fromkeys((name, *(_OPENCV if name in _OPENCV else ()))):
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return ""
