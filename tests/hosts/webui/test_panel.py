"""The panel is made of what gradio 3.41 (AUTOMATIC1111) and 4.40 (Forge) both have; neither is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlkit.hosts.webui import panel, units
from controlkit.hosts.webui.units import GUIDE_FIELDS, UNIT_FIELDS, Guide, Unit
from tests.hosts.webui import stand_in

COMMON = {
    "Accordion": {"label", "open", "elem_id"},
    "Row": set[str](),
    "Column": set[str](),
    "Button": {"value", "elem_id"},
    "Checkbox": {"label", "value", "elem_id"},
    "Dropdown": {"label", "choices", "value", "elem_id"},
    "HTML": {"elem_id"},
    "Image": {"label", "type", "interactive", "height", "elem_id"},
    "Number": {"label", "value", "visible"},
    "Slider": {"label", "minimum", "maximum", "step", "value", "elem_id"},
    "Textbox": {"label", "value", "placeholder"},
}
"""What may be used, and with which arguments; those that both know alike."""


class Part:
    """A component of the stand-in for gradio."""

    def __init__(self, kind: str, given: dict[str, Any]) -> None:
        self.kind, self.given = kind, given
        self.clicked: dict[str, Any] = {}

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None: ...

    def click(self, function: Any, *, inputs: list[Part], outputs: list[Part]) -> None:
        assert self.kind == "Button"
        self.clicked = {"function": function, "inputs": inputs, "outputs": outputs}


class Gradio:
    """What of gradio there is in both; everything else is an error."""

    def __init__(self) -> None:
        self.made: list[Part] = []

    def __getattr__(self, kind: str) -> Any:
        known = COMMON[kind]
        first = {"Accordion": "label", "Button": "value"}.get(kind)

        def make(*args: Any, **given: Any) -> Part:
            if args:
                assert first is not None
                given[first] = args[0]
            assert given.keys() <= known, f"{kind} with {given.keys() - known}"
            if kind in ("Slider", "Number", "Checkbox", "Textbox") and "value" in given:
                assert given["value"] is not None
            self.made.append(Part(kind, given))
            return self.made[-1]

        return make


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Gradio, list[Any], list[Any]]:
    stand_in.modules(monkeypatch, tmp_path)
    (tmp_path / "models" / "ControlNet").mkdir(parents=True)
    (tmp_path / "models" / "ControlNet" / "a.safetensors").touch()
    gradio = Gradio()
    return gradio, *panel.build(gradio, "txt2img")


def test_its_components_are_the_scripts_arguments(built: Any) -> None:
    _, components, _ = built
    plain = [getattr(Unit(), name) for name in UNIT_FIELDS] * units.COUNT
    plain += [getattr(Guide(), name) for name in GUIDE_FIELDS]
    assert [part.given.get("value") for part in components] == plain, "as it opens it asks for nothing"
    assert units.read([part.given.get("value") for part in components]) == ([], [])


def test_what_can_be_chosen_can_be_read(built: Any) -> None:
    _, components, _ = built
    for name, part in zip(UNIT_FIELDS, components, strict=False):
        for choice in part.given.get("choices", ()):
            made = units.unit_of({name: choice}, "unit")
            assert getattr(made, name) == choice


def test_ids_are_unique(built: Any) -> None:
    gradio, _, _ = built
    ids = [part.given["elem_id"] for part in gradio.made if "elem_id" in part.given]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("txt2img_controlkit") for name in ids)


def test_a_picture_s_parameters_come_back(built: Any) -> None:
    _, components, pairs = built
    unit = Unit(True, "a.safetensors", None, "canny", "low_threshold: 60", 0.7, 0.1, 0.9, "control", "crop")
    guide = Guide(True, "edges", strength=2.0, through_unet=True)
    told = {"ControlKit 1": units.describe(unit), "ControlKit guidance": units.describe(guide)}
    found = {id(part): value(told) for part, value in pairs}
    width = len(UNIT_FIELDS)
    second = [found.get(id(part)) for part in components[width : 2 * width]]
    assert second == [getattr(unit, name) for name in UNIT_FIELDS]
    last = [found.get(id(part)) for part in components[3 * width :]]
    assert last == [getattr(guide, name) for name in GUIDE_FIELDS]
    assert found[id(components[0])] is False, "a unit that was not there is switched off"
    assert found[id(components[1])] is None, "and is otherwise left as it is"


def test_new_files_are_looked_for(built: Any, tmp_path: Path) -> None:
    gradio, components, _ = built
    (tmp_path / "models" / "ControlNet" / "b.safetensors").touch()
    button = next(part for part in gradio.made if part.given.get("value") == "Look for new files")
    models, encoders = button.clicked["function"]()
    assert models == {"__type__": "update", "choices": ["None", "a.safetensors", "b.safetensors"]}
    assert encoders == {"__type__": "update", "choices": ["Automatic"]}
    places = [UNIT_FIELDS.index(name) for name in ("model", "encoder")]
    assert button.clicked["outputs"] == [components[place] for place in places]


def test_the_preview_is_made_for_the_tabs_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.modules(monkeypatch, tmp_path)
    gradio, sizes = Gradio(), [Part("Slider", {}), Part("Slider", {})]
    panel.build(gradio, "img2img", sizes)
    buttons = [part for part in gradio.made if part.given.get("value") == "Preview"]
    assert [button.clicked["inputs"][-2:] for button in buttons] == [sizes] * units.COUNT
