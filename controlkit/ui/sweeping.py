"""The part of the page that makes grids: a control, a list of scales, a list of seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from controlkit.errors import ControlKitError, ParameterError
from controlkit.recipes import GuidanceRecipe, Recipe
from controlkit.ui import captions
from controlkit.ui.settings import GUIDES, UNITS, Page
from controlkit.ui.sweep import CHUNK, MOST, Sweep

CONTROLS = [*(f"Control {k + 1}" for k in range(UNITS)), *(f"Guidance {k + 1}" for k in range(GUIDES))]
"""What may be swept, as the page calls it."""


def panel() -> dict[str, Any]:
    """The widgets: ``control``, ``scales``, ``seeds``, the button ``go``, and ``open``, what holds them."""
    made: dict[str, Any] = {}
    with gr.Accordion("Sweep: scale by seed", open=False, elem_id="sweep-open") as made["open"]:
        with gr.Row(elem_classes="ck-pair"):
            made["control"] = gr.Dropdown(
                CONTROLS, value=CONTROLS[0], label="Control", elem_id="sweep-control", min_width=140
            )
            made["scales"] = gr.Textbox(
                "0, 0.5, 1",
                label="Scales",
                info="Columns",
                max_lines=1,
                elem_id="sweep-scales",
                min_width=120,
            )
            made["seeds"] = gr.Textbox(
                "0-2",
                label="Seeds",
                info="Rows: 3, 7, 10-12",
                max_lines=1,
                elem_id="sweep-seeds",
                min_width=120,
            )
        made["go"] = gr.Button("Make the grid", elem_id="sweep-go")
        gr.Markdown(
            f"A picture for each, at most {MOST}, and a sheet of them, which restores all of it. "
            "Where the scale is a curve, the curve is multiplied.",
            elem_classes="ck-hint",
        )
    return made


def sweep_of(page: Page, control: str, scales: str, seeds: str) -> Sweep:
    """The grid that is set.

    Raises:
        ParameterError: The control is not in use, or a list that cannot be read.
    """
    used = [CONTROLS[number] for number, unit in enumerate(page.units) if unit.use]
    used += [CONTROLS[UNITS + number] for number, guide in enumerate(page.guides) if guide.use]
    if control not in used:
        raise ParameterError(
            "sweep",
            found=f"{control or 'no control'}, which is not in use",
            expected=f"one of {', '.join(used)}" if used else "a control",
            fix="Choose another, or switch it on.",
        )
    return Sweep(control=used.index(control), scales=_scales(scales), seeds=_seeds(seeds))


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise ParameterError(
            "sweep: scales", found=f"{text!r:.60}", expected="numbers such as 0, 0.5, 1"
        ) from None


def _seeds(text: str) -> tuple[int, ...]:
    found: list[int] = []
    try:
        for part in filter(str.strip, (text or "").split(",")):
            first, dash, last = part.partition("-")
            low = int(first)
            high = int(last) if dash else low
            if not low <= high < low + MOST:
                raise ValueError
            found += range(low, high + 1)
    except ValueError:
        raise ParameterError(
            "sweep: seeds",
            found=f"{text!r:.60}",
            expected=f"whole numbers such as 3, 7, 10-12, at most {MOST}",
        ) from None
    return tuple(found)


def recipe_in(content: bytes) -> bytes:
    """The recipe behind a contact sheet, as JSON; anything else as it is."""
    found = _carried(content)
    return json.dumps(found["recipe"]).encode() if found else content


def fields_in(path: str | None) -> list[Any]:
    """What a contact sheet gives ``control``, ``scales``, ``seeds``, ``open``; no change from others."""
    found = _carried(Path(path).read_bytes()) if path else None
    if not found:
        return [gr.skip()] * 4
    try:
        sweep, recipe = Sweep(**found["sweep"]), Recipe.load(found["recipe"])
        part = recipe.controls[sweep.control]
    except (ControlKitError, TypeError, IndexError):
        return [gr.skip()] * 4
    kind = isinstance(part, GuidanceRecipe)
    same = [one for one in recipe.controls[: sweep.control] if isinstance(one, GuidanceRecipe) == kind]
    number = len(same) + (UNITS if kind else 0)
    if number >= len(CONTROLS):
        return [gr.skip()] * 4
    return [
        CONTROLS[number],
        ", ".join(f"{scale!r}" for scale in sweep.scales),
        ", ".join(map(str, sweep.seeds)),
        gr.update(open=True),
    ]


def _carried(content: bytes) -> dict[str, Any] | None:
    """What a contact sheet carries; None where it is none."""
    text = captions.text_in(content, CHUNK)
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        return None
    return found if isinstance(found.get("sweep"), dict) else None
