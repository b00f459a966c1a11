"""What there is to choose from: models, controls, detectors, schedulers, guidance functions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from controlkit.ui.places import Places

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of diffusers that are offered; a recipe may name any."""

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
MOST = 2000
"""Entries of the folder of models that are looked at."""
DEEP = 4
"""Folders below the folder of models that are looked into."""


def models(places: Places) -> list[str]:
    """Sources of text-to-image models: the embedded one, folders in diffusers layout, and whole files."""
    from controlkit.recipes.single import base_of

    files = list(_files(places.models))
    whole = [path for path in files if base_of(path)]
    configs = {path.with_suffix("") for path in whole}  # folders beside files hold no weights
    folders = {path.parent for path in files if path.name == "model_index.json"} - configs
    return ["embedded:base", *sorted(_source(path, places) for path in (*folders, *whole))]


def controls(places: Places) -> list[str]:
    """Sources of control modules: the embedded ones, those of other packages, and weight files."""
    from controlkit import embedded, plugins

    found = [f"embedded:{name}" for name in embedded.names() if not _is_classifier(name)]
    found += [f"plugin:{name}" for name in plugins.kinds()]
    files = list(_files(places.models))
    pipelines = {path.parent for path in files if path.name == "model_index.json"}
    from controlkit.recipes.single import base_of

    for path in sorted(files):
        if path.suffix not in WEIGHTS or any(parent in pipelines for parent in path.parents) or base_of(path):
            continue
        layout = (path.parent / "config.json").is_file() and path.parent != places.models
        found.append(_source(path.parent if layout else path, places))
    return list(dict.fromkeys(found))


def detectors() -> list[dict[str, Any]]:
    """Detectors as plain data, with what of their needs is not installed."""
    from controlkit.batch.versions import missing_for
    from controlkit.preprocessors import detectors as known

    return [{**asdict(info), "missing": missing_for(info)} for info in known()]


def guidance() -> list[str]:
    """Names of guidance functions."""
    from importlib import metadata

    from controlkit.recipes.building import GUIDANCE_GROUP
    from controlkit.recipes.guides import BUILT_IN

    others = {entry.name for entry in metadata.entry_points(group=GUIDANCE_GROUP)}
    return sorted({*BUILT_IN, *others})


def about(source: str, places: Places) -> dict[str, Any]:
    """What the weights of a source are, as `controlkit.inspect` says it.

    Raises:
        ControlKitError: They are not there, or cannot be read.
    """
    import controlkit as ck
    from controlkit import embedded, plugins
    from controlkit.errors import RecipeError
    from controlkit.recipes import ModuleRecipe

    scheme, _, name = ModuleRecipe(source=source).source.partition(":")
    if scheme == "plugin":
        made = plugins.module(name)
        return {"source": source, "kind": name, "condition": getattr(made, "condition", None)}
    if scheme == "embedded":
        if name not in embedded.names():
            names = ", ".join(embedded.names())
            raise RecipeError("module", found=repr(source)[:80], expected=f"one of {names}")
        return {**asdict(_embedded(name)), "source": source}
    place = name if scheme == "hub" else places.files.weights(source)
    return {**asdict(ck.inspect(place)), "source": source}


@cache
def _is_classifier(name: str) -> bool:
    """Read from its config alone: the page is built before anything heavy is imported."""
    from controlkit import embedded

    config = json.loads((embedded.path(name) / "config.json").read_text("utf-8"))
    return config.get("_class_name") == "NoisyClassifier"


@cache
def _embedded(name: str) -> Any:
    import controlkit as ck
    from controlkit import embedded

    return ck.inspect(embedded.path(name))


def _source(path: Path, places: Places) -> str:
    assert places.models is not None
    return f"file:{path.relative_to(places.models).as_posix()}"


def _files(folder: Path | None) -> Iterator[Path]:
    """Files below the folder of models, hidden ones and links to elsewhere left out."""
    if folder is None or not folder.is_dir():
        return
    count = 0
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if name[:1] != "." and depth < DEEP)
        for name in sorted(names):
            count += 1
            if count > MOST:
                return
            if name[:1] != ".":
                yield Path(place) / name
