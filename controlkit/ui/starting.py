"""The panel of the picture to start from, with the mask that is painted on it."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from controlkit.errors import ControlKitError
from controlkit.recipes.starting import PAINTED
from controlkit.ui import fields, widgets
from controlkit.ui.panels import Panel
from controlkit.ui.service import Service
from controlkit.ui.settings import Page, Start

NOTHING = "Without a picture it starts from noise. Of a picture, what is painted is drawn anew."


def start_panel(service: Service, frame: list[Any]) -> Panel:
    """The panel, in an accordion.

    Args:
        service: What the server can do.
        frame: The widgets of model, width and height.
    """
    own = Start()
    with gr.Accordion("Start from a picture", open=False, elem_id="start-open") as opened:
        with gr.Row():
            with gr.Column(min_width=280):
                image = widgets.picture("Picture", "start-image", 320)
            with gr.Column(min_width=280):
                brush = widgets.region("Paint here", "start-mask")
        said = gr.Markdown(NOTHING, elem_id="start-said", elem_classes="ck-hint")
        with gr.Row():
            last = gr.Button("The last picture", size="sm", elem_id="start-last", min_width=120)
            shape = gr.Button("Its shape for the run", size="sm", elem_id="start-shape", min_width=120)
            clear = gr.Button("Nothing painted", size="sm", elem_id="start-clear", min_width=120)
        with gr.Row(elem_classes="ck-pair"):
            strength = gr.Slider(
                0.05,
                1,
                own.strength,
                step=0.05,
                label="Strength",
                info="How much becomes new: the share of the steps that is run",
                elem_id="start-strength",
            )
            blur = gr.Slider(
                0,
                32,
                own.blur,
                step=0.5,
                label="Edge",
                info="Pixels over which the mask fades outwards",
                elem_id="start-blur",
            )
        with gr.Row(elem_classes="ck-pair"):
            margin = gr.Textbox(
                own.margin,
                label="Only the part around the mask",
                info="With so many pixels beside it, at the size of the run. Empty: the whole picture",
                max_lines=1,
                elem_id="start-margin",
            )
            resize = gr.Radio(
                ["stretch", "crop", "pad"],
                value=own.resize,
                label="A picture of another shape",
                elem_id="start-resize",
            )
        mask, rest = gr.State(None), gr.State({})
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def fresh(picture: Any) -> tuple[Any, None]:
        return widgets.drawing(picture, None), None

    image.input(fresh, image, [brush, mask], **quiet)
    clear.click(fresh, image, [brush, mask], **quiet)
    brush.input(lambda painted: painted, brush, mask, trigger_mode="always_last", **quiet)
    gr.on([image.change, mask.change], told, [image, mask], said, trigger_mode="always_last", **quiet)
    last.click(lambda: newest(service), None, [image, brush, mask], **quiet)
    shape.click(lambda picture, model: shaped(service, picture, model), [image, frame[0]], frame[1:], **quiet)
    return Panel([image, strength, mask, blur, margin, resize, rest], [brush, opened])


def told(picture: Any, mask: Any) -> str:
    """What will happen with the picture and what is painted, in words."""
    if picture is None:
        return NOTHING
    if mask is None:
        return "Nothing is painted: all of the picture is drawn anew."
    share = sum(mask.histogram()[PAINTED:]) / (mask.width * mask.height)
    return f"{share:.0%} of the picture is drawn anew, the rest is kept."


def newest(service: Service) -> tuple[Any, Any, Any]:
    """The newest picture, to start from.

    Raises:
        gradio.Error: There is none.
    """
    pictures = service.places.pictures(1)
    if not pictures:
        raise gr.Error("Make one first.", title="No picture yet", print_exception=False)
    picture = widgets.opened(pictures[0])
    return picture, widgets.drawing(picture, None), None


def shaped(service: Service, picture: Any, model: str) -> tuple[Any, Any]:
    """Width and height of a picture's shape, in steps of 8, with about the pixels that a model makes."""
    if picture is None:
        return gr.skip(), gr.skip()
    try:
        width, height = fields.run_size(Page(model=model), service.places)
    except ControlKitError as error:
        raise gr.Error(str(error), title="No size", print_exception=False) from None
    scale = math.sqrt(width * height / (picture.width * picture.height))
    return _eights(picture.width * scale), _eights(picture.height * scale)


def _eights(side: float) -> int:
    return max(8, round(side / 8) * 8)
