"""Gradio's widgets as the page uses them: pictures decoded by `controlkit.images`, options from their ranges.

Gradio decodes uploads with whatever Pillow knows, without a limit of pixels; so the widgets here are given a
``preprocess`` of their own. (Subclasses would do too, but Gradio writes a file beside the source of each.)
Functions of the page give them values, never ``gr.skip`` or ``gr.update``: for these Gradio makes a widget
anew, without what it was given here.
"""

from __future__ import annotations

import io
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from controlkit.errors import ControlKitError
from controlkit.images import open_image

LONGEST = 1536
"""Longest side of a photograph on the page; larger ones are reduced to it when they arrive."""

KEPT = 8
"""Drawings that Gradio holds in memory."""

_WHITE = [min(255, round(value / 0.6)) for value in range(256)]
"""By the opacity of a veil: how white what it covers is."""

HIDDEN = ("weights", "revision", "local_files_only", "device", "half", "safe")
"""Options of detectors that are the machine's owner's."""


def picture(label: str, name: str, height: int = 220) -> Any:
    """A place for a photograph: uploaded, from the webcam, or pasted. Its value is a PIL image."""
    made: Any = gr.Image(
        label=label,
        type="filepath",
        format="png",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=height,
        elem_id=name,
        elem_classes="ck-picture",
    )
    made.preprocess = lambda payload: None if payload is None else opened(payload.path)
    return made


def opened(value: Any) -> Image.Image | None:
    """A picture that was uploaded, at most `LONGEST` pixels long.

    Raises:
        gradio.Error: It is none, or too large; with the sentence of `controlkit.images`.
    """
    if value is None or isinstance(value, Image.Image):
        return value
    try:
        found = open_image(value, notes=[])
    except ControlKitError as error:
        raise gr.Error(str(error), title="This picture cannot be used", print_exception=False) from None
    if max(found.size) > LONGEST:
        found.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return found


def region(label: str, name: str) -> Any:
    """A picture to paint on, so that it shows through. Its value is what was painted, white on black (mode
    L), or None for nothing.

    Args:
        label: What it says.
        name: Its id.
    """
    made: Any = gr.ImageEditor(
        label=label,
        type="pil",
        format="png",
        image_mode="RGBA",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(colors=["rgba(255, 45, 85, 0.6)"], color_mode="fixed", default_size=24),
        height=320,
        elem_id=name,
    )
    storage = made.blob_storage

    def painted(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        held = payload if payload.id is None else storage.get(payload.id)
        layers = [layer_of(layer) for layer in (getattr(held, "layers", None) or [])]
        for old in list(storage)[:-KEPT]:
            storage.pop(old, None)
        found = union([layer for layer in layers if layer is not None])
        return None if found is None else found.point(_WHITE)

    made.preprocess = painted
    return made


def layer_of(file: Any) -> Image.Image | None:
    """One layer of what was painted: a file, or its bytes; None for none."""
    if file is None:
        return None
    content = io.BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file.path
    return open_image(content, notes=[])


def union(layers: list[Image.Image]) -> Image.Image | None:
    """What is painted on any of these layers, white on black; None where nothing is."""
    if not layers:
        return None
    size = layers[0].size
    alpha = [np.asarray(layer.convert("RGBA").resize(size).getchannel("A")) for layer in layers]
    painted = np.maximum.reduce(alpha)
    return Image.fromarray(painted) if painted.any() else None


def curve(key: str) -> Any:
    """The curve of a unit's scale, drawn from its text field and written into it by ``curve.js``.

    Args:
        key: What the names of the unit's widgets begin with.
    """
    return gr.HTML(
        f'<div class="ck-curve" data-key="{key}"></div>',
        js_on_load="window.ckCurve(element)",
        elem_id=f"{key}-curve",
    )


def drawing(background: Image.Image | None, mask: Image.Image | None) -> dict[str, Any] | None:
    """What `region` shows: a picture, and what is painted on it."""
    if background is None:
        return None
    ground, layers = background.convert("RGB"), []
    if mask is not None:
        layer = Image.new("RGBA", ground.size, (255, 45, 85, 255))
        alpha = mask.convert("L").resize(ground.size)
        layer.putalpha(alpha.point([round(0.6 * value) for value in range(256)]))
        layers.append(layer)
    composite = ground.convert("RGBA")
    for layer in layers:
        composite = Image.alpha_composite(composite, layer)
    return {"background": ground, "layers": layers, "composite": composite}


def option(about: dict[str, Any], value: Any) -> Any:
    """The widget of a detector's option; None where the page has none for it.

    Args:
        about: The option, as `controlkit.preprocessors.OptionInfo` has it.
        value: What it is set to.
    """
    name, default, low, high = about["name"], about["default"], about["low"], about["high"]
    if default is None or name in HIDDEN:
        return None
    unit = f" ({about['unit']})" if about["unit"] else ""
    given: dict[str, Any] = {"label": name.replace("_", " ") + unit, "info": about["meaning"], "value": value}
    given["interactive"] = True
    if isinstance(default, bool):
        return gr.Checkbox(**given)
    if about["choices"]:
        return gr.Dropdown(choices=list(about["choices"]), **given)
    if isinstance(default, str):
        return gr.Textbox(**given)
    if low is None or high is None:
        return gr.Number(**given)
    step = about["step"] or (1 if isinstance(default, int) else _step(high - low))
    return gr.Slider(low, high, step=step, **given)


def _step(span: float) -> float:
    """A round step, about a two-hundredth of a range."""
    for step in (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0):
        if span / step <= 400:
            return step
    return 10.0
