"""The control files of the web UI's ControlNet folder, by name; read only when a unit needs them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from controlkit.errors import ParameterError
from controlkit.hosts.webui.host import host
from controlkit.module import ControlModule

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
KEPT = 3
"""Modules that stay in memory."""

_loaded: OrderedDict[tuple[Any, ...], ControlModule] = OrderedDict()


def folders() -> list[Path]:
    """Where control files lie: the folders that were named, and the web UI's ``models/ControlNet``."""
    options = host("modules.shared").cmd_opts
    named = [getattr(options, name, None) for name in ("controlkit_dir", "controlnet_dir")]
    return [Path(place) for place in [*named, host("modules.paths").models_path + "/ControlNet"] if place]


def encoder_folders() -> list[Path]:
    """Where image encoders lie: ``models/clip_vision``, and where sd-webui-controlnet keeps its own."""
    options, paths = host("modules.shared").cmd_opts, host("modules.paths")
    theirs = getattr(options, "controlnet_annotator_models_path", None)
    places = [Path(paths.models_path) / "clip_vision", *([Path(theirs) / "clip_vision"] if theirs else [])]
    extensions = Path(getattr(paths, "extensions_dir", None) or Path(paths.models_path).parent / "extensions")
    return [*places, extensions / "sd-webui-controlnet" / "annotator" / "downloads" / "clip_vision"]


def dtype() -> torch.dtype | None:
    """What modules compute in: the U-Net's on a GPU; float32 on CPUs, where half precision is slow."""
    devices = host("modules.devices")
    return torch.float32 if devices.device.type == "cpu" else getattr(devices, "dtype_unet", None)


def listed(folders: Sequence[Path]) -> dict[str, Path]:
    """Every control file of some folders, by its name within its folder; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def path_of(name: str, folders: Sequence[Path]) -> Path:
    """The file of a name: that of the list, also without its ending or with a checksum in brackets after it.

    Raises:
        ParameterError: There is none; the message lists what there is.
    """
    files = listed(folders)
    wanted = name.partition(" [")[0].strip()
    for known, path in files.items():
        if wanted in (known, known.rpartition(".")[0]):
            return path
    places = ", ".join(map(str, folders))
    raise ParameterError(
        "model",
        found=repr(name)[:80],
        expected=f"one of {', '.join(files)}" if files else f"a file in {places}",
        fix=f"Put control files into {places}.",
    )


def load(path: Path, dtype: torch.dtype | None) -> ControlModule:
    """The module of a file, kept until others have taken its place or the file has changed.

    Args:
        path: The file; in a folder of diffusers' layout with ``config.json`` beside it.
        dtype: What to compute in; None: as stored.
    """
    import controlkit

    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size, dtype)
    if key in _loaded:
        _loaded.move_to_end(key)
        return _loaded[key]
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if (path.parent / "config.json").is_file():
        module = controlkit.load(path.parent, weight_name=path.name, **options)
    else:
        module = controlkit.load(path, **options)
    while len(_loaded) >= KEPT:
        _loaded.popitem(last=False)
    _loaded[key] = module
    return module
