"""How ``--control`` and ``--model`` are read.

A control is ``NAME=IMAGE`` with options after commas::

    --control controlnet-canny=photo.jpg,detect=canny,scale=0.9,end=0.8
    --control weights.safetensors=map.png,scale=0:1/0.5:0.2,mask=left.png

``NAME`` is an embedded model, a file or folder, a hub id, or a kind from another package.
``option.KEY=VALUE`` is for arguments that only its kind has.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlkit.cli.console import parse_value
from controlkit.errors import ParameterError
from controlkit.images import open_image

_OPTION = re.compile(r",(?=[a-z_]+(?:\.\w+)?=)")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_KEYS = ("detect", "scale", "start", "end", "mode", "mask", "resize", "blocks", "channel_order")
_SPELLING = "Write NAME=IMAGE[,detect=canny,scale=0.9,start=0,end=0.8,mask=FILE,...]."


@dataclass
class Sources:
    """Turns what people type for weights into a recipe's words, remembering where local files are.

    Args:
        known: Path of each ``file:`` source met so far.
    """

    known: dict[str, Path] = field(default_factory=dict[str, Path])

    def of(self, text: str, what: str) -> str:
        """The source for an embedded name, a path or a hub id.

        Raises:
            ParameterError: It is none of them.
        """
        from controlkit import embedded, plugins

        if text.startswith(("embedded:", "hub:", "plugin:")):
            return text
        names = [*embedded.names(), *plugins.kinds()]
        if text in names:
            return f"embedded:{text}" if text in embedded.names() else f"plugin:{text}"
        path = Path(text.removeprefix("file:")).expanduser()
        if path.exists():
            return self._local(path.resolve())
        if _HUB.fullmatch(text) and path.suffix not in (".safetensors", ".pth", ".pt", ".ckpt", ".bin"):
            return f"hub:{text}"
        near = difflib.get_close_matches(text, names, n=1)
        raise ParameterError(
            what,
            found=f"{text!r}, which is neither a file here nor an embedded model",
            expected="an embedded model, a file or folder, or a hub id",
            fix=f"Did you mean {near[0]}?" if near else "controlkit models lists the embedded ones.",
        )

    def _local(self, path: Path) -> str:
        for name in (path.name, f"{path.parent.name}/{path.name}"):
            source = f"file:{name}"
            if self.known.setdefault(source, path) == path:
                return source
        raise ParameterError(
            "--control", found=f"two files called {path.name}", expected="different names", fix="Rename one."
        )


def is_hub(text: str) -> bool:
    """Whether a text that is no path here is a hub id, ``owner/name``."""
    return bool(_HUB.fullmatch(text))


def parse_control(text: str, sources: Sources) -> dict[str, Any]:
    """The arguments of a `ControlRecipe`, from one ``--control``.

    Raises:
        ParameterError: It is not written as ``NAME=IMAGE,key=value``.
        HintError: The image cannot be read.
    """
    first, *options = _OPTION.split(text)
    name, equals, image = first.partition("=")
    if not equals or not name or not image:
        raise ParameterError("--control", found=repr(text), expected="NAME=IMAGE", fix=_SPELLING)
    control: dict[str, Any] = {"module": sources.of(name, "--control"), "image": open_image(image)}
    for option in options:
        key, _, value = option.partition("=")
        group, dot, name = key.partition(".")
        if dot and group in ("detect", "option"):
            field_name = "detect_options" if group == "detect" else "options"
            control.setdefault(field_name, {})[name] = parse_value(value)
        elif key in _KEYS:
            control.update(_option(key, value))
        else:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            fix = (
                f"Did you mean {near[0]}?"
                if near
                else f"There are {', '.join(_KEYS)}, detect.OPTION, option.NAME."
            )
            raise ParameterError(
                "--control", found=f"the option {key!r}", expected="one that exists", fix=fix
            )
    return control


def _option(key: str, value: str) -> dict[str, Any]:
    if key == "mask":
        return {"mask": open_image(value)}
    if key == "blocks":
        return {"block_scales": [_number(key, part) for part in value.split("/")]}
    if key == "scale" and ":" in value:
        points = [part.partition(":") for part in value.split("/")]
        return {"scale": [(_number(key, at), _number(key, scale)) for at, _, scale in points]}
    if key in ("scale", "start", "end"):
        return {key: _number(key, value)}
    return {key: value}


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        expected = "a number, or points such as 0:1/0.5:0.2" if key == "scale" else "a number"
        raise ParameterError(f"--control {key}", found=repr(text), expected=expected) from None
