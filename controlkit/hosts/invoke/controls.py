"""What goes from the node of a control, or of guidance, to the node that makes the picture.

Pictures stay in InvokeAI's store and go by their names, so that the queue's records stay small.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel

from controlkit import embedded
from controlkit.errors import ParameterError
from controlkit.hosts.invoke.building import NodeKind, output
from controlkit.hosts.invoke.host import api
from controlkit.hosts.written import read_numbers, read_options, read_points
from controlkit.preprocessors import detectors
from controlkit.recipes import ControlRecipe, GuidanceRecipe, encode
from controlkit.recipes.guides import BUILT_IN

MODES = ("balanced", "prompt", "control")
RESIZES = ("stretch", "crop", "pad")
NO_DETECTOR = "none: the image is the map"
NETWORKS = {
    "classifier": ("network", "embedded:classifier"),
    "depth": ("network", "embedded:depth"),
    "image": ("model", "embedded:clip"),
    "segmentation": ("network", "embedded:segmentation"),
    "text": ("model", "embedded:clip"),
}
"""The option of each guidance function that is a network, and the one it has where none is named."""

_BLANK = {"data": "AAAA"}
"""Stands for a picture while the other values of a control are checked."""


class ControlKitControlField(BaseModel):
    """A control, or guidance, bound to its pictures.

    Args:
        part: Its part of a recipe, without pictures.
        image: InvokeAI's name of its picture.
        mask: InvokeAI's name of its mask.
        model: Key of the model in InvokeAI's model manager, where that has it.
    """

    part: dict[str, Any]
    image: str | None = None
    mask: str | None = None
    model: str | None = None


def control_nodes(module: str) -> tuple[list[NodeKind], Any]:
    """The nodes of controls and guidance.

    Args:
        module: As for `controlkit.hosts.invoke.building.node`.
    """
    fields = {"control": (ControlKitControlField, api().OutputField(description="for the node Generate"))}
    result = output("controlkit_control_output", "A control bound to its map.", fields, module)
    return [_control(result), _guidance(result)], result


def parts_of(given: Any, context: Any) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """The controls of a recipe with their pictures in them, and where InvokeAI has their weights.

    Args:
        given: What the input ``controls`` holds: one control, a list of them, or None.
        context: InvokeAI's.
    """
    controls: list[ControlKitControlField] = []
    if given is not None:
        controls = list(cast("list[Any]", given)) if isinstance(given, list) else [given]
    known: dict[str, Path] = {}
    parts: list[dict[str, Any]] = []
    written = {control.part.get("module") for control in controls if control.model is None}
    for control in controls:
        part = dict(control.part)
        for key, name in (("image", control.image), ("mask", control.mask)):
            if name is not None:
                part[key] = {"data": encode(context.images.get_pil(name))}
        if control.part.get("guidance") == "color" or control.part.get("guidance") == "region":
            mask = part.pop("mask", None)
            part["options"] = {**part.get("options", {}), **({"mask": mask} if mask else {})}
        if control.model is not None:
            source, place = model_source(control.model, context, known, written)
            part["module"], known[source] = source, place
        parts.append(part)
    return parts, known


def model_source(
    key: str, context: Any, known: Mapping[str, Path] | None = None, written: Collection[Any] = ()
) -> tuple[str, Path]:
    """A model of InvokeAI's model manager as a recipe names it, and where it lies.

    Args:
        key: InvokeAI's key of it.
        context: InvokeAI's.
        known: Where other models of the recipe lie, by their names there.
        written: What else the recipe names. Models may have one name in InvokeAI, not in a recipe.
    """
    config = context.models.get_config(key)
    name = "".join(letter if letter.isprintable() else " " for letter in str(config.name))
    source, place = f"file:{name}", Path(context.models.get_absolute_path(config))
    while source in written or (known or {}).get(source, place) != place:
        source += "'"
    return source, place


def window() -> dict[str, tuple[Any, Any]]:
    """The inputs ``start`` and ``end``."""
    field = api().InputField
    return {
        "start": (
            float,
            field(default=0.0, ge=0.0, le=1.0, description="share of the steps at which it begins"),
        ),
        "end": (float, field(default=1.0, ge=0.0, le=1.0, description="share of the steps at which it ends")),
    }


def _control(result: Any) -> NodeKind:
    public = api()
    field: Any = public.InputField
    modules = tuple(f"embedded:{name}" for name in embedded.names() if name != "classifier")
    names = (NO_DETECTOR, *(info.name for info in detectors()))
    file = "a control file or folder below InvokeAI's models folder, in place of module"
    model = "a ControlNet or T2I-Adapter of InvokeAI's model manager, in place of module"
    kinds = [public.ModelType.ControlNet, public.ModelType.T2IAdapter]
    fields: dict[str, tuple[Any, Any]] = {
        "image": (public.ImageField, field(description="the map, or a photo for the detector")),
        "module": (
            Literal[modules],
            field(default=modules[0], description="a control of the embedded model"),
        ),
        "model": (
            public.ModelIdentifierField | None,
            field(default=None, description=model, ui_model_type=kinds),
        ),
        "file": (str, field(default="", description=file)),
        "detector": (Literal[names], field(default=NO_DETECTOR, description="makes the map from a photo")),
        "detector_options": (
            str,
            field(default="", description="such as low_threshold: 60, high_threshold: 140"),
        ),
        "strength": (float, field(default=1.0, ge=-10.0, le=10.0, description="0 is off, 1 as trained")),
        **window(),
        "mode": (
            Literal[MODES],
            field(default="balanced", description="which of prompt and control counts more"),
        ),
        "resize": (
            Literal[RESIZES],
            field(default="stretch", description="how a map of another shape is fitted"),
        ),
        "curve": (str, field(default="", description="points such as 0: 1, 0.5: 0.2, in place of strength")),
        "block_scales": (str, field(default="", description="one factor per residual, the middle last")),
        "mask": (public.ImageField | None, field(default=None, description="white where it acts")),
    }

    def run(node: Any, context: Any) -> Any:
        detect = None if node.detector == NO_DETECTOR else node.detector
        if node.model is not None and node.file.strip():
            raise ParameterError(
                "control", found="a model and a file", expected="one of them", fix="Clear the other."
            )
        source = f"file:{node.file.strip()}" if node.file.strip() else node.module
        part: dict[str, Any] = {
            "module": model_source(node.model.key, context)[0] if node.model is not None else source,
            "detect": detect,
            "detect_options": read_options(node.detector_options) or None,
            "scale": read_points(node.curve) or node.strength,
            "start": node.start,
            "end": node.end,
            "mode": node.mode,
            "resize": node.resize,
            "block_scales": read_numbers("block_scales", node.block_scales),
        }
        plain: Any = {"image": _BLANK, **part}
        ControlRecipe(**plain)
        bound = ControlKitControlField(
            part=part,
            image=node.image.image_name,
            mask=None if node.mask is None else node.mask.image_name,
            model=None if node.model is None else node.model.key,
        )
        return result(control=bound)

    return NodeKind(
        kind="controlkit_control",
        title="Control - ControlKit",
        about="Bind a control to its map, for the node Generate. Several go in through a Collect node.",
        fields=fields,
        output=result,
        run=run,
        tags=("control", "controlnet", "t2i-adapter"),
        gallery=False,
    )


def _guidance(result: Any) -> NodeKind:
    public = api()
    field: Any = public.InputField
    network = "of functions that need one: embedded:clip or file:NAME; empty: the embedded model's"
    fields: dict[str, tuple[Any, Any]] = {
        "function": (Literal[BUILT_IN], field(default="color", description="what to steer by")),
        "target": (str, field(default="", description="what towards: a colour, a text or a class")),
        "image": (public.ImageField | None, field(default=None, description="what towards, as a picture")),
        "mask": (public.ImageField | None, field(default=None, description="white where it counts")),
        "network": (str, field(default="", description=network)),
        "strength": (float, field(default=1.0, ge=-1e6, le=1e6, description="1 is Bayes' rule")),
        **window(),
        "max_norm": (float, field(default=0.0, ge=0.0, description="longest gradient of a picture; 0: any")),
        "normalize": (bool, field(default=False, description="whether strength shall not depend on φ")),
        "through_unet": (
            bool,
            field(default=False, description="the exact gradient; twice the time or more"),
        ),
    }

    def run(node: Any, context: Any) -> Any:
        option, default = NETWORKS.get(node.function, ("", ""))
        target = node.target.strip()
        part: dict[str, Any] = {
            "guidance": node.function,
            "options": {option: node.network.strip() or default} if option else {},
            "target": (int(target) if target.isdecimal() else target) if target else None,
            "scale": node.strength,
            "start": node.start,
            "end": node.end,
            "max_norm": node.max_norm or None,
            "normalize": node.normalize,
            "through_unet": node.through_unet or None,
        }
        plain: Any = {**part, "image": None if node.image is None else _BLANK}
        GuidanceRecipe(**plain)
        bound = ControlKitControlField(
            part=part,
            image=None if node.image is None else node.image.image_name,
            mask=None if node.mask is None else node.mask.image_name,
        )
        return result(control=bound)

    return NodeKind(
        kind="controlkit_guidance",
        title="Guidance - ControlKit",
        about="Steer by a function of the predicted picture, for the node Generate.",
        fields=fields,
        output=result,
        run=run,
        tags=("guidance", "control"),
        gallery=False,
    )
