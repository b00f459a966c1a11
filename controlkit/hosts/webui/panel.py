"""How the units look: what gradio 3 and 4 have in common, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlkit.hosts.webui import units
from controlkit.hosts.webui.units import Guide, Unit

TITLE = "ControlKit"


def build(
    gr: Any, models: Sequence[str], detectors: Sequence[str], prefix: str
) -> tuple[list[Any], list[Any]]:
    """The panel.

    Args:
        gr: The web UI's gradio.
        models: Names of control files.
        detectors: Names of detectors.
        prefix: Of the elements' ids.

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
                made = _unit(gr, models, detectors, name)
            components += [made[field] for field in units.UNIT_FIELDS]
            pairs += _pairs(made, f"{TITLE} {number}", Unit)
        name = f"{prefix}_controlkit_guidance"
        with gr.Accordion("Guidance", open=False, elem_id=name):
            made = _guide(gr, name)
        components += [made[field] for field in units.GUIDE_FIELDS]
        pairs += _pairs(made, f"{TITLE} guidance", Guide)
    return components, pairs


def _unit(gr: Any, models: Sequence[str], detectors: Sequence[str], name: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["enabled"] = gr.Checkbox(label="Enable", value=False, elem_id=f"{name}_enabled")
    with gr.Row():
        made["image"] = gr.Image(label="Image", type="pil", elem_id=f"{name}_image")
        made["mask"] = gr.Image(label="Mask: white where it acts", type="pil", elem_id=f"{name}_mask")
    with gr.Row():
        made["model"] = gr.Dropdown(label="Model", choices=[units.NONE, *models], value=units.NONE)
        made["detector"] = gr.Dropdown(label="Detector", choices=[units.NONE, *detectors], value=units.NONE)
        made["options"] = gr.Textbox(label="Detector options", value="", placeholder="low_threshold: 60")
    with gr.Row():
        made["weight"] = gr.Slider(label="Weight", minimum=-2.0, maximum=2.0, step=0.05, value=1.0)
        made["start"] = _share(gr, "Start", 0.0)
        made["end"] = _share(gr, "End", 1.0)
    with gr.Row():
        made["mode"] = gr.Dropdown(label="Control mode", choices=list(units.MODES), value="balanced")
        made["resize"] = gr.Dropdown(label="Resize mode", choices=list(units.RESIZES), value="stretch")
        made["passes"] = gr.Dropdown(label="With hires fix", choices=list(units.PASSES), value="both")
    return made


def _guide(gr: Any, name: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["enabled"] = gr.Checkbox(label="Enable", value=False, elem_id=f"{name}_enabled")
    with gr.Row():
        made["image"] = gr.Image(label="Target: a picture, or an edge map", type="pil")
        made["mask"] = gr.Image(label="Region: white where it counts", type="pil")
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
    return gr.Slider(label=f"{label} (share of steps)", minimum=0.0, maximum=1.0, step=0.01, value=value)


def _pairs(made: Mapping[str, Any], key: str, kind: Any) -> list[Any]:
    def value_of(field: str) -> Callable[[Mapping[str, Any]], Any]:
        def value(parameters: Mapping[str, Any]) -> Any:
            text = parameters.get(key)
            if text is None:
                return False if field == "enabled" else None
            return units.restore(str(text), kind).get(field, getattr(kind(), field))

        return value

    return [(part, value_of(field)) for field, part in made.items() if field not in ("image", "mask")]
