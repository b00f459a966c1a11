"""What a checkpoint is, without building it: `controlkit.inspect`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from controlkit.checkpoints.formats import Layout, base_of, recognise, unwrap
from controlkit.checkpoints.placing import main_dtype
from controlkit.checkpoints.sources import Opened, open_source

_CONDITIONS = {
    "canny": "canny",
    "depth": "depth",
    "normal": "normal",
    "normalbae": "normal",
    "seg": "seg",
    "segmentation": "seg",
    "openpose": "openpose",
    "pose": "openpose",
    "keypose": "keypose",
    "scribble": "scribble",
    "softedge": "softedge",
    "hed": "softedge",
    "mlsd": "mlsd",
    "lineart": "lineart",
    "sketch": "sketch",
    "color": "color",
    "shuffle": "shuffle",
    "ip2p": "ip2p",
    "inpaint": "inpaint",
    "tile": "tile",
    "blur": "blur",
    "gray": "gray",
    "recolor": "gray",
    "style": "style",
    "qrcode": "qrcode",
    "brightness": "brightness",
}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is.

    Args:
        source: As it was named.
        kind: ``controlnet``, ``t2i-adapter``, or what else it was recognised as (``lora``, ``unet``, …).
        base: ``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``.
        layout: ``diffusers``, ``ldm``, ``t2i-original``, …
        condition: What its maps show, where its metadata or its name says so; for reports alone.
        parameters: Number of weights.
        dtype: In which most of them are stored, such as ``float16``.
        config: As config.json has it, or as far as shapes tell.
        keys: Number of tensors.
        loadable: Whether `controlkit.load` takes it.
        title: What it is, in words, such as ``a LoRA``.
        advice: What to do with it instead, where it is not loadable.
        notes: What was unusual about the file.
    """

    source: str
    kind: str
    base: str
    layout: str
    condition: str | None
    parameters: int
    dtype: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    keys: int = 0
    loadable: bool = False
    title: str = ""
    advice: str = ""
    notes: tuple[str, ...] = ()


def inspect(
    source: object,
    *,
    subfolder: str | None = None,
    weight_name: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> CheckpointInfo:
    """Tell what a checkpoint is. Of safetensors files only the header is read, or fetched.

    Args:
        source: A hub id, a folder, a file or a state dict, as for `load`.
        subfolder: Of the folder or repository.
        weight_name: Of the weight file in it.
        revision: Branch, tag or commit on the hub.
        local_files_only: Do not connect.

    Raises:
        CheckpointError: It cannot be read, or is nothing that is known.
    """
    with open_source(
        source,
        subfolder=subfolder,
        weight_name=weight_name,
        revision=revision,
        local_files_only=local_files_only,
        header_only=True,
    ) as opened:
        shapes = opened.weights.shapes
        prefix, notes = unwrap(shapes)
        shapes = {name[len(prefix) :]: shape for name, shape in shapes.items()}
        layout = recognise(shapes, opened.what, config=opened.config)
        base, config = _describe(layout, shapes, opened.config)
        most = main_dtype(opened.weights.dtypes, opened.weights.shapes)
        return CheckpointInfo(
            source=opened.what,
            kind=layout.kind,
            base=base,
            layout=layout.layout,
            condition=condition_of(opened),
            parameters=sum(math.prod(shape) for shape in shapes.values()),
            dtype=str(most or "none").removeprefix("torch."),
            config={key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
            keys=len(shapes),
            loadable=layout.reader is not None,
            title=layout.title,
            advice="" if layout.reader is not None else layout.advice,
            notes=(*opened.notes, *opened.weights.notes, *notes),
        )


def condition_of(opened: Opened) -> str | None:
    """What the maps show, by the file's metadata, else by a word of its name. Nothing depends on it."""
    if said := opened.weights.metadata.get("condition"):
        return said
    if opened.config and isinstance(said := opened.config.get("_condition"), str):
        return said
    if opened.config and opened.config.get("global_pool_conditions") is True:
        return "shuffle"
    words = re.split(r"[^a-z0-9]+", opened.what.lower().replace("\\", "/"))
    if "lineart" in words and "anime" in words:
        return "lineart_anime"
    return next((_CONDITIONS[word] for word in reversed(words) if word in _CONDITIONS), None)


def _describe(
    layout: Layout, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    if layout.reader is not None:
        reader = layout.load_reader()
        # It should not raise; but an odd checkpoint is what one wants to look at.
        with suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return reader.describe(layout.layout, shapes, config)
    return base_of(shapes), dict(config or {})
