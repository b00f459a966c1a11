"""How the units look: what gradio 3 and 4 have in common, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlkit.hosts.webui import controls, encoders, files, preview, units
from controlkit.hosts.webui.units import Guide, Unit
from controlkit.maps.conditions import CONDITIONS
from controlkit.preprocessors import detectors

TITLE = "ControlKit"
SIZES = tuple(f"{tab}_{side}" for tab in ("txt2img", "img2img") for side in ("width", "height"))
"""Ids of the web UI's sliders for the picture's size."""


def build(gr: Any, prefix: str, sizes: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
    """The panel.

    Args:
        gr: The web UI's gradio.
        prefix: Of the elements' ids: the tab.
        sizes: The tab's components for width and height, for the preview; None where they are not known yet.

    Returns:
        The components in the order of a script's arguments, and the pairs by which parameters of a picture
        are restored.
    """
    components: list[Any] = []
    pairs: list[Any] = []
    with gr.Accordion(TITLE, open=False, elem_id=f"{prefix}_controlkit"):
        for number in range(units.COUNT):
            name = f"{prefix}_controlkit_{number}"
            with gr.Accordion(f"Unit {number}", open=number == 0, elem_id=name):
                made = _unit(gr, name, sizes)
            components += [made[field] for field in units.UNIT_FIELDS]
            pairs += _pairs(made, f"{TITLE} {number}", Unit)
        name = f"{prefix}_controlkit_guidance"
        with gr.Accordion("Guidance", open=False, elem_id=name):
            made = _guide(gr, name)
        components += [made[field] for field in units.GUIDE_FIELDS]
        pairs += _pairs(made, f"{TITLE} guidance", Guide)
    return components, pairs


def _unit(gr: Any, name: str, sizes: Sequence[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    known = [units.NONE, *(info.name for info in detectors())]
    with gr.Row():
        made["enabled"] = gr.Checkbox(label="Enable", value=False, elem_id=f"{name}_enabled")
        made["pixel_perfect"] = gr.Checkbox(label="Detector at the picture's size", value=False)
    with gr.Row():
        made["image"] = _picture(gr, "Image: the map, or a photo", f"{name}_image")
        made["mask"] = _picture(gr, "Mask: white where it acts", f"{name}_mask")
        with gr.Column():
            label = "Preview: the map as the module sees it"
            seen = gr.Image(label=label, interactive=False, height=240, elem_id=f"{name}_preview")
            about = gr.HTML(elem_id=f"{name}_about")
    with gr.Row():
        made["model"] = gr.Dropdown(
            label="Model", choices=_models(), value=units.NONE, elem_id=f"{name}_model"
        )
        made["detector"] = gr.Dropdown(
            label="Detector", choices=known, value=units.NONE, elem_id=f"{name}_detector"
        )
    with gr.Row():
        show = gr.Button("Preview", elem_id=f"{name}_show")
        refresh = gr.Button("Look for new files", elem_id=f"{name}_refresh")
    with gr.Row():
        made["weight"] = gr.Slider(
            label="Weight", minimum=-2.0, maximum=2.0, step=0.05, value=1.0, elem_id=f"{name}_weight"
        )
        made["start"] = _share(gr, "Start", 0.0)
        made["end"] = _share(gr, "End", 1.0)
    with gr.Row():
        made["mode"] = gr.Dropdown(label="Control mode", choices=list(units.MODES), value="balanced")
        made["resize"] = gr.Dropdown(label="Resize mode", choices=list(units.RESIZES), value="stretch")
        made["passes"] = gr.Dropdown(label="With hires fix", choices=list(units.PASSES), value="both")
    with gr.Accordion("More: detector options, what the map shows, image encoder", open=False):
        _more(gr, made, name)
    inputs = [made[field] for field in preview.FIELDS]
    inputs += [side if side is not None else gr.Number(value=512, visible=False) for side in _two(sizes)]
    show.click(preview.previewer(preview.module_of), inputs=inputs, outputs=[seen, about])
    refresh.click(_lists, inputs=[], outputs=[made["model"], made["encoder"]])
    return made


def _more(gr: Any, made: dict[str, Any], name: str) -> None:
    with gr.Row():
        made["options"] = gr.Textbox(label="Detector options", value="", placeholder="low_threshold: 60")
        made["size"] = gr.Number(label="Shortest side of its map (0: the picture's)", value=0)
        made["block_scales"] = gr.Textbox(label="Block scales", value="", placeholder="1, 0.5, ...")
    shows = [units.NONE, *CONDITIONS, "hed", "midas", "segment", "repaint", controls.CONTENT]
    with gr.Row():
        made["condition"] = gr.Dropdown(
            label="The map shows", choices=shows, value=units.NONE, elem_id=f"{name}_condition"
        )
        made["encoder"] = gr.Dropdown(
            label="Image encoder (image prompts, content, styles)",
            choices=_encoders(),
            value=units.AUTOMATIC,
            elem_id=f"{name}_encoder",
        )


def _models() -> list[str]:
    return [units.NONE, *files.listed(files.folders())]


def _encoders() -> list[str]:
    return [units.AUTOMATIC, *encoders.listed(files.encoder_folders())]


def _lists() -> tuple[Any, Any]:
    """New choices for both lists, in the form that gradio 3 and 4 both take."""
    return (
        {"__type__": "update", "choices": _models()},
        {"__type__": "update", "choices": _encoders()},
    )


def _two(sizes: Sequence[Any]) -> list[Any]:
    return list(sizes) if len(sizes) == 2 else [None, None]


def _picture(gr: Any, label: str, name: str) -> Any:
    return gr.Image(label=label, type="pil", height=240, elem_id=name)


def _guide(gr: Any, name: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["enabled"] = gr.Checkbox(label="Enable", value=False, elem_id=f"{name}_enabled")
    with gr.Row():
        made["image"] = _picture(gr, "Target: a picture, or an edge map", f"{name}_image")
        made["mask"] = _picture(gr, "Region: white where it counts", f"{name}_mask")
    with gr.Row():
        made["function"] = gr.Dropdown(label="Function", choices=list(units.FUNCTIONS), value="color")
        made["color"] = gr.Textbox(label="Colour", value="red")
        made["strength"] = gr.Number(label="Strength", value=1.0)
        made["max_norm"] = gr.Number(label="Longest gradient (0: any)", value=0.0)
    with gr.Row():
        made["start"] = _share(gr, "Start", 0.0)
        made["end"] = _share(gr, "End", 1.0)
        made["normalize"] = gr.Checkbox(label="Normalize", value=False)
        made["through_unet"] = gr.Checkbox(label="Through the U-Net (exact, slower)", value=False)
    return made


def _share(gr: Any, label: str, value: float) -> Any:
    return gr.Slider(label=label, minimum=0.0, maximum=1.0, step=0.01, value=value)


def _pairs(made: Mapping[str, Any], key: str, kind: Any) -> list[Any]:
    def value_of(field: str) -> Callable[[Mapping[str, Any]], Any]:
        def value(parameters: Mapping[str, Any]) -> Any:
            text = parameters.get(key)
            if text is None:
                return False if field == "enabled" else None
            return units.restore(str(text), kind).get(field, getattr(kind(), field))

        return value

    return [(part, value_of(field)) for field, part in made.items() if field not in ("image", "mask")]
