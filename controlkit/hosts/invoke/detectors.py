"""One node per detector, made from the table of detectors: their options are its inputs."""

from __future__ import annotations

from typing import Any, Literal, cast

from controlkit.hosts.invoke.building import NodeKind
from controlkit.hosts.invoke.host import api
from controlkit.preprocessors import DetectorInfo, detectors, preprocess
from controlkit.preprocessors.base import OptionInfo

LARGEST = 4096
"""Pixels of the shortest side at which a detector looks."""

_LAST = ("weights", "revision", "local_files_only", "device", "half", "safe")
"""Options about where a network comes from and how it runs; shown after those about the map."""

_TAKEN = (
    "id",
    "type",
    "board",
    "metadata",
    "workflow",
    "image",
    "resolution",
    "is_intermediate",
    "use_cache",
)
"""Names that the node has already, and those that InvokeAI keeps for itself."""


def detector_nodes() -> list[NodeKind]:
    """Every detector's node; runs none of them and imports nothing that they need."""
    return [_node(info) for info in detectors()]


def node_type(detector: str) -> str:
    """``controlkit_detect_lineart_anime`` for ``lineart-anime``."""
    return "controlkit_detect_" + detector.replace("-", "_").replace(" ", "_")


def field_name(option: str) -> str:
    """The name of an option's input: its own, with ``_`` after it where that name is taken."""
    taken = {*_TAKEN, *dir(api().BaseInvocation)}
    return f"{option}_" if option in taken else option


def option_field(option: OptionInfo) -> tuple[Any, Any]:
    """An option as an input of InvokeAI: its type, and its field with default, range and meaning."""
    public = api()
    about = f"{option.meaning} ({option.unit})" if option.unit else option.meaning
    given: dict[str, Any] = {"default": option.default, "description": about}
    if option.default is None:
        return public.ImageField | None, public.InputField(**given)
    kind: Any = type(option.default)
    if option.choices:
        kind = Literal[option.choices]
    elif kind in (int, float):
        if option.low is not None:
            given["ge"] = kind(option.low)
        if option.high is not None:
            given["le"] = kind(option.high)
    return kind, public.InputField(**given)


def _node(info: DetectorInfo) -> NodeKind:
    public = api()
    needs = f" Needs {info.extra}." if info.extra else ""
    ordered = sorted(info.options, key=lambda option: option.name in _LAST)
    names = {option.name: field_name(option.name) for option in ordered}
    masks = [option.name for option in ordered if option.default is None]
    about = "shortest side at which it looks, in pixels; 0: the picture's own"
    fields = {
        "image": (public.ImageField, public.InputField(description="The picture")),
        **{names[option.name]: option_field(option) for option in ordered},
        "resolution": (int, public.InputField(default=0, ge=0, le=LARGEST, description=about)),
    }

    def run(node: Any, context: Any) -> Any:
        options = {name: getattr(node, key) for name, key in names.items()}
        for name in masks:
            given = options.pop(name)
            if given is not None:
                options[name] = context.images.get_pil(given.image_name, "L")
        picture = context.images.get_pil(node.image.image_name, "RGB")
        made = cast(Any, preprocess)(picture, info.name, resolution=node.resolution or None, **options)
        return public.ImageOutput.build(context.images.save(image=made))

    return NodeKind(
        kind=node_type(info.name),
        title=f"Detect {info.name} - ControlKit",
        about=f"{info.meaning[:1].upper()}{info.meaning[1:]}.{needs}",
        fields=fields,
        output=public.ImageOutput,
        run=run,
        tags=("detector", "preprocessor", info.name, info.family),
    )
