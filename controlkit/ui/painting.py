"""The map painted by hand: what the module will see, or an empty canvas, edited with a brush."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from controlkit.errors import ControlKitError
from controlkit.recipes import ControlRecipe
from controlkit.ui import fields, widgets
from controlkit.ui.service import Service
from controlkit.ui.settings import NO_DETECTOR, Page, Unit

COLOURS = ["#ffffff", "#000000", "#808080", "#ff0000", "#00ff00", "#0000ff"]
"""Colours of the brush that are at hand; any other can be chosen."""


def panel(key: str) -> dict[str, Any]:
    """The widgets: ``edit``, and the buttons ``take``, ``empty`` and ``use``.

    Args:
        key: What the names of the unit's widgets begin with.
    """
    made: dict[str, Any] = {}
    with gr.Accordion("Paint the map", open=False, elem_id=f"{key}-paint-open"):
        with gr.Row():
            made["take"] = gr.Button("What the module sees", size="sm", elem_id=f"{key}-take", min_width=120)
            made["empty"] = gr.Button("An empty canvas", size="sm", elem_id=f"{key}-empty", min_width=120)
            made["use"] = gr.Button(
                "Use it as the map", size="sm", variant="primary", elem_id=f"{key}-paint-use", min_width=120
            )
        made["edit"] = canvas("The map", f"{key}-paint")
    return made


def canvas(label: str, name: str) -> Any:
    """A map to paint on. Its value is the whole picture (mode RGB), or None for none."""
    made: Any = gr.ImageEditor(
        label=label,
        type="pil",
        format="png",
        image_mode="RGB",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(colors=[*COLOURS], default_color=COLOURS[0], color_mode="defaults", default_size=2),
        height=360,
        elem_id=name,
        elem_classes="ck-canvas",
    )
    storage = made.blob_storage

    def painted(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        held = payload if payload.id is None else storage.get(payload.id)
        parts = [getattr(held, "background", None), *(getattr(held, "layers", None) or [])]
        for old in list(storage)[: -widgets.KEPT]:
            storage.pop(old, None)
        return flattened([part for each in parts if (part := widgets.layer_of(each)) is not None])

    made.preprocess = painted
    return made


def flattened(parts: list[Image.Image]) -> Image.Image | None:
    """A background with what was painted over it, all of it opaque; None for nothing."""
    if not parts:
        return None
    ground = Image.new("RGBA", parts[0].size, (0, 0, 0, 255))
    for part in parts:
        ground = Image.alpha_composite(ground, part.convert("RGBA").resize(ground.size))
    return ground.convert("RGB")


def on_canvas(picture: Image.Image) -> dict[str, Any]:
    """What the editor shows: a picture with nothing painted on it."""
    return {"background": picture, "layers": [], "composite": picture}


def taken(service: Service, page: Page, unit: Unit, number: int) -> Image.Image:
    """What the module of a unit will see, without its region.

    Raises:
        ControlKitError: There is nothing to see.
    """
    size = fields.run_size(page, service.places)
    part = ControlRecipe(**fields.control_of(unit, number, size, service.places))
    return service.seen(part, *size).map


def wire(
    made: dict[str, Any],
    service: Service,
    number: int,
    page_of: Callable[[Any, Any, Any], Page],
    widgets_of: dict[str, list[Any]],
) -> None:
    """Let the buttons act.

    Args:
        made: The widgets of `panel`.
        service: What the server can do.
        number: Of the control, from 1.
        page_of: The page from the values of ``frame``.
        widgets_of: ``frame`` (model, width, height), ``values`` of the unit, and ``filled``: image, detector,
            options, tick, use and the brush of the region, which are set when the map is used.
    """
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    frame, values, filled = widgets_of["frame"], widgets_of["values"], widgets_of["filled"]

    def shown(act: Callable[[], Image.Image]) -> dict[str, Any]:
        try:
            picture = act()
        except ControlKitError as error:
            raise gr.Error(str(error), title="Nothing to paint on", print_exception=False) from None
        return on_canvas(picture)

    def take(model: Any, width: Any, height: Any, *given: Any) -> dict[str, Any]:
        return shown(lambda: taken(service, page_of(model, width, height), Unit(*given), number))

    def empty(model: Any, width: Any, height: Any) -> dict[str, Any]:
        page = page_of(model, width, height)
        return shown(lambda: Image.new("RGB", fields.run_size(page, service.places)))

    def use(drawn: Image.Image | None, mask: Any, tick: int) -> list[Any]:
        if drawn is None:
            raise gr.Error(
                "Take what the module sees, or an empty canvas, and paint on it.",
                title="Nothing is painted",
                print_exception=False,
            )
        return [drawn, NO_DETECTOR, {}, tick + 1, True, widgets.drawing(drawn, mask)]

    made["take"].click(take, [*frame, *values], made["edit"], **quiet)
    made["empty"].click(empty, frame, made["edit"], **quiet)
    tick, mask = filled[3], values[[each.name for each in _fields()].index("mask")]
    made["use"].click(use, [made["edit"], mask, tick], filled, **quiet)


def _fields() -> Any:
    import dataclasses

    return dataclasses.fields(Unit)
