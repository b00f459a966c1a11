"""The panels of the page, one for each control and each guidance function, with what happens inside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from controlkit.errors import ControlKitError
from controlkit.recipes import ControlRecipe
from controlkit.ui import fields, listing, painting, widgets
from controlkit.ui.service import Service
from controlkit.ui.settings import NETWORKS, NO_DETECTOR, Guide, Page, Unit


@dataclass
class Panel:
    """The widgets of a panel.

    Args:
        values: In the order of the fields of `Unit` or `Guide`.
        others: What is filled beside them when a recipe is put on the page.
        tick: Counts up where the widgets of a detector's options are to be made anew; guides have none.
    """

    values: list[Any]
    others: list[Any]
    tick: Any = None


def unit_panel(number: int, service: Service, frame: list[Any]) -> Panel:
    """The panel of a control.

    Args:
        number: From 1.
        service: What the server can do.
        frame: The widgets of model, width and height, on which previews depend.
    """
    about = {info["name"]: info for info in listing.detectors()}
    own = Unit()
    key = f"unit{number}"
    with gr.Row(elem_classes="ck-pair"):
        use = gr.Checkbox(own.use, label="Use this control", elem_id=f"{key}-use")
        module = gr.Dropdown(
            listing.controls(service.places),
            value=own.module,
            label="Module",
            info="From the list, a file below the folder of models, or hub:OWNER/NAME",
            allow_custom_value=True,
            elem_id=f"{key}-module",
            scale=2,
            min_width=250,
        )
    with gr.Row(elem_classes="ck-pair"):
        image = widgets.picture("Photograph or map", f"{key}-image")
        seen = gr.Image(
            label="What the module will see",
            format="png",
            interactive=False,
            height=220,
            elem_id=f"{key}-seen",
            elem_classes=["ck-seen", "ck-picture"],
            buttons=["fullscreen", "download"],
        )
    doubt = gr.Markdown(elem_id=f"{key}-doubt", elem_classes="ck-doubt")
    paint = painting.panel(key)
    with gr.Row(elem_classes="ck-pair"):
        detector = gr.Dropdown(
            [NO_DETECTOR, *(name for name, info in about.items() if not info["missing"])],
            value=own.detector,
            label="Detector",
            elem_id=f"{key}-detector",
        )
        fit = gr.Checkbox(
            own.fit,
            label="Look at the size of the run",
            info="else at the photograph's",
            elem_id=f"{key}-fit",
            min_width=220,
        )
    options, tick = gr.State({}), gr.State(0)
    with gr.Accordion("Detector options", open=False):
        _options(about, detector, options, tick)
    with gr.Row(elem_classes="ck-pair"):
        scale = gr.Slider(-1, 2, own.scale, step=0.05, label="Scale", elem_id=f"{key}-scale")
        start = gr.Slider(0, 0.95, own.start, step=0.05, label="Start", elem_id=f"{key}-start")
        end = gr.Slider(0.05, 1, own.end, step=0.05, label="End", elem_id=f"{key}-end")
    with gr.Row(elem_classes="ck-pair"):
        mode = gr.Radio(
            ["balanced", "prompt", "control"], value=own.mode, label="Mode", elem_id=f"{key}-mode"
        )
        points = gr.Textbox(
            label="Scale as a curve",
            info="Points FRACTION:SCALE, such as 0:1, 0.5:0.2; in place of the scale",
            elem_id=f"{key}-points",
        )
    widgets.curve(key)
    mask = gr.State(None)
    with gr.Accordion("Region: paint where it acts", open=False, elem_id=f"{key}-region-open"):
        gr.Markdown("It acts on what is painted; with nothing painted, everywhere.", elem_classes="ck-hint")
        brush = widgets.region("Paint here", f"{key}-region")
        clear = gr.Button("Everywhere", size="sm", elem_id=f"{key}-everywhere")
    with gr.Accordion("Advanced", open=False):
        blocks = gr.Textbox(
            label="Block scales",
            info="One factor for each residual in the U-Net's order, the middle last, with commas between",
            elem_id=f"{key}-blocks",
        )
        resize = gr.Radio(["stretch", "crop", "pad"], value=own.resize, label="A map of another shape")
    rest = gr.State({})
    values = [
        use,
        module,
        image,
        detector,
        fit,
        options,
        scale,
        points,
        start,
        end,
        mode,
        mask,
        blocks,
        resize,
    ]
    values.append(rest)

    def page_of(model: str, width: float, height: float) -> Page:
        return Page(model=model, width=width or 0, height=height or 0)

    def look(model: str, width: float, height: float, *given: Any) -> tuple[Any, str]:
        return preview(service, page_of(model, width, height), Unit(*given), number)

    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": True, "api_visibility": "private"}
    changes = [each.change for each in (module, image, detector, fit, options, mask, resize, *frame)]
    gr.on(
        changes,
        look,
        [*frame, *values],
        [seen, doubt],
        trigger_mode="always_last",
        concurrency_limit=1,
        concurrency_id="looking",
        **quiet,
    )
    image.upload(lambda: True, None, use, **quiet)
    image.input(lambda picture: (widgets.drawing(picture, None), None), image, [brush, mask], **quiet)
    module.input(
        lambda name, count: fitting(service, name, count), [module, tick], [detector, options, tick], **quiet
    )
    detector.input(lambda count: ({}, count + 1), tick, [options, tick], **quiet)
    brush.input(lambda painted: painted, brush, mask, trigger_mode="always_last", **quiet)
    clear.click(lambda picture: (widgets.drawing(picture, None), None), image, [brush, mask], **quiet)
    filled = [image, detector, options, tick, use, brush]
    painting.wire(paint, service, number, page_of, {"frame": frame, "values": values, "filled": filled})
    return Panel(values, [brush, tick], tick)


def _options(about: dict[str, Any], detector: Any, options: Any, tick: Any) -> None:
    """The widgets of the detector that is chosen, made anew when another is."""

    @gr.render(
        inputs=[detector, options],
        triggers=[tick.change],
        show_progress="hidden",
        concurrency_limit=1,  # of one page, Gradio cannot make two at once
        concurrency_id="options",
    )
    def show(name: str, values: dict[str, Any]) -> None:
        made = 0
        for entry in about[name]["options"] if name in about else ():
            widget = widgets.option(entry, values.get(entry["name"], entry["default"]))
            if widget is None:
                continue
            made += 1
            change = widget.release if isinstance(widget, gr.Slider) else widget.input
            change(
                _setter(entry),
                [options, widget],
                options,
                show_progress="hidden",
                api_visibility="private",
                key=f"{name}-{entry['name']}",
            )
        if not made:
            gr.Markdown("It has none.")


def _setter(entry: dict[str, Any]) -> Any:
    def put(values: dict[str, Any], value: Any) -> dict[str, Any]:
        if isinstance(entry["default"], int) and not isinstance(entry["default"], bool) and value is not None:
            value = int(value)
        return {**values, entry["name"]: value}

    return put


def fitting(service: Service, module: str, count: int) -> tuple[Any, Any, Any]:
    """The detector whose maps a module reads, no options, and the next count; or no change."""
    try:
        info = listing.about(fields.source_of(module, service.places, "module"), service.places)
    except ControlKitError:
        return gr.skip(), gr.skip(), gr.skip()
    name = detector_for(str(info.get("condition") or ""), str(info.get("base")))
    return (name, {}, count + 1) if name else (gr.skip(), gr.skip(), gr.skip())


def detector_for(condition: str, base: str) -> str:
    """The first detector for a kind of map that needs no download; empty where there is none."""
    found = [
        info["name"]
        for info in listing.detectors()
        if info["family"] == condition and not info["needs_weights"] and not info["missing"]
    ]
    own = [name for name in found if name.startswith("embedded-") == (base == "embedded")]
    return (own or found or [""])[0]


def preview(service: Service, page: Page, unit: Unit, number: int) -> tuple[Any, str]:
    """What a control's module will see, and a sentence about it.

    Args:
        service: What the server can do.
        page: Model and size.
        unit: The control.
        number: Of the control, from 1.

    Returns:
        The picture, or None; Markdown.
    """
    if unit.image is None:
        return None, ""
    try:
        size = fields.run_size(page, service.places)
        part = ControlRecipe(**fields.control_of(unit, number, size, service.places))
        found = service.seen(part, *size)
    except ControlKitError as error:
        return None, f"**Cannot be used:** {_escaped(str(error))}"
    notes = _escaped("; ".join((f"{size[0]} x {size[1]} pixels", *found.notes)))
    if found.doubt:
        return found.shown, f"⚠️ **Doubtful:** {_escaped(found.doubt)}\n\n{notes}"
    return found.shown, notes


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in text)


def guide_panel(number: int) -> Panel:
    """The panel of a guidance function."""
    own = Guide()
    key = f"guide{number}"
    with gr.Row(elem_classes="ck-pair"):
        use = gr.Checkbox(own.use, label="Use this guidance", elem_id=f"{key}-use")
        kind = gr.Dropdown(listing.guidance(), value=own.kind, label="Function", elem_id=f"{key}-kind")
        target = gr.Textbox(
            label="Target", info="A colour, a text, a class, or JSON", elem_id=f"{key}-target", scale=2
        )
    with gr.Row(elem_classes="ck-pair"):
        image = widgets.picture("Target as a picture", f"{key}-image", 180)
        where = widgets.picture("Where (color, region): white inside", f"{key}-where", 180)
    with gr.Row(elem_classes="ck-pair"):
        scale = gr.Number(own.scale, label="Scale", step=0.1, elem_id=f"{key}-scale")
        start = gr.Slider(0, 0.95, own.start, step=0.05, label="Start")
        end = gr.Slider(0.05, 1, own.end, step=0.05, label="End")
    with gr.Accordion("Advanced", open=False):
        options = gr.Textbox(label="Options", info="JSON; networks are sources, such as embedded:clip")
    rest = gr.State({})

    def chosen(name: str) -> tuple[str, dict[str, Any]]:
        return options_of(name), {}

    kind.input(chosen, kind, [options, rest], show_progress="hidden", api_visibility="private")
    return Panel([use, kind, target, image, where, scale, start, end, options, rest], [])


def options_of(kind: str) -> str:
    """The options that a guidance function begins with, as JSON."""
    import json

    return json.dumps(NETWORKS[kind]) if kind in NETWORKS else ""
