"""InvokeAI's nodes against stand-ins: fields from the table, pictures as Python makes them, plain errors."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import controlkit as ck
from tests.hosts.invoke import stand_in
from tests.hosts.invoke.stand_in import Canceled, Context

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "a red cube on a sand floor"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Classes by type, made for a pack called some-clone."""
    stand_in.install(monkeypatch)
    monkeypatch.setattr(stand_in, "REGISTERED", {})
    monkeypatch.delitem(sys.modules, "some-clone.controlkit_nodes", raising=False)
    from controlkit.hosts.invoke import load

    load("some-clone")
    monkeypatch.setitem(
        sys.modules, "some-clone.controlkit_nodes", sys.modules["some-clone.controlkit_nodes"]
    )
    return dict(stand_in.REGISTERED)


def test_there_is_a_node_for_every_detector_and_the_pack_is_the_clones(nodes: dict[str, Any]) -> None:
    detectors = [kind for kind in nodes if kind.startswith("controlkit_detect_")]
    assert len(detectors) == len(ck.detectors())
    assert len(nodes) == len(detectors) + 6
    assert {cls.__module__.split(".")[0] for cls in nodes.values()} == {"some-clone"}
    assert {cls.about["category"] for cls in nodes.values()} == {"controlkit"}


def test_a_pack_is_registered_once_until_it_is_forgotten(nodes: dict[str, Any], monkeypatch: Any) -> None:
    from controlkit.hosts.invoke import load

    assert len(load("some-clone")) == len(nodes), "the stand-in refuses a type twice"
    monkeypatch.delitem(sys.modules, "some-clone.controlkit_nodes")
    monkeypatch.setattr(stand_in, "REGISTERED", {})
    load("some-clone")
    assert stand_in.REGISTERED.keys() == nodes.keys()


def test_options_are_typed_inputs_with_their_ranges(nodes: dict[str, Any]) -> None:
    for info in ck.detectors():
        cls = nodes["controlkit_detect_" + info.name.replace("-", "_")]
        properties = cls.model_json_schema()["properties"]
        for option in info.options:
            entry = properties[option.name]
            assert entry.get("default") == option.default
            kinds = entry.get("anyOf", [entry])
            numeric = next((kind for kind in kinds if kind.get("type") in ("integer", "number")), None)
            if numeric is not None:
                limits = {**entry, **numeric}
                assert (limits.get("minimum"), limits.get("maximum")) == (option.low, option.high)
            if option.choices:
                assert tuple(entry["enum"]) == option.choices
    with pytest.raises(ValidationError, match="less than or equal to 2040"):
        nodes["controlkit_detect_canny"](low_threshold=5000.0)


def test_a_detector_gives_the_map_that_python_gives(nodes: dict[str, Any]) -> None:
    context, scene = Context(), ck.embedded.scene(5)
    node = nodes["controlkit_detect_canny"](
        image=context.put(scene.image), low_threshold=60.0, resolution=256
    )
    made = context.pictures[node.invoke(context).image.image_name]
    expected = ck.preprocess(scene.image, "canny", low_threshold=60.0, resolution=256)
    assert np.array_equal(np.asarray(made), np.asarray(expected))


def test_a_mask_is_a_picture(nodes: dict[str, Any]) -> None:
    context, scene = Context(), ck.embedded.scene(5)
    hidden = Image.fromarray(((scene.instances > 0) * 255).astype("uint8"))
    node = nodes["controlkit_detect_inpaint"](image=context.put(scene.image), mask=context.put(hidden))
    made = context.pictures[node.invoke(context).image.image_name]
    assert np.array_equal(np.asarray(made), np.asarray(ck.preprocess(scene.image, "inpaint", mask=hidden)))


def test_a_wrong_option_is_one_sentence(nodes: dict[str, Any]) -> None:
    context = Context()
    image = context.put(ck.embedded.scene(5).image)
    node = nodes["controlkit_detect_canny"](image=image, low_threshold=200.0, high_threshold=100.0)
    with pytest.raises(ck.ParameterError, match="Exchange them") as caught:
        node.invoke(context)
    assert "\n" not in str(caught.value)


def test_a_map_is_checked(nodes: dict[str, Any]) -> None:
    context, scene = Context(), ck.embedded.scene(5)
    check = nodes["controlkit_check_map"]
    good = check(image=context.put(scene.canny), condition="canny").invoke(context)
    bad = check(image=context.put(scene.image), condition="canny").invoke(context)
    assert (good.ok, good.fault, bad.ok, bad.fault) == (True, "", False, "photograph")
    assert bad.text == str(ck.check_map(scene.image, "canny"))
    with pytest.raises(ck.HintError, match="photograph"):
        check(image=bad.image, condition="canny", refuse=True).invoke(context)


def test_linked_controls_make_the_picture_that_python_makes_and_its_recipe_is_kept(nodes: Any) -> None:
    context, scene = Context(), ck.embedded.scene(5)
    control = nodes["controlkit_control"](
        image=context.put(scene.image), detector="canny", strength=0.8, mask=context.put(scene.canny)
    )
    color = nodes["controlkit_guidance"](function="color", target="blue", mask=context.put(scene.canny))
    both = [entry.invoke(context).control for entry in (control, color)]
    node = nodes["controlkit_generate"](prompt=PROMPT, seed=3, steps=2, controls=both)
    done = node.invoke(context)
    made, metadata = context.pictures[done.image.image_name], context.data[done.image.image_name]
    first = {"module": "embedded:controlnet-canny", "image": scene.image, "detect": "canny", "scale": 0.8}
    second = {"guidance": "color", "target": "blue", "options": {"mask": scene.canny}}
    recipe = {"prompt": PROMPT, "seed": 3, "steps": 2, "controls": [{**first, "mask": scene.canny}, second]}
    assert np.array_equal(np.asarray(made), np.asarray(ck.run(recipe)[0]))
    carried = metadata.root["controlkit_recipe"]
    assert carried == json.loads(done.recipe)
    again = nodes["controlkit_generate_recipe"](picture=done.image).invoke(context)
    assert np.array_equal(np.asarray(context.pictures[again.image.image_name]), np.asarray(made))
    assert [share for text, share in context.progress if text == "Denoising"][:2] == [0.5, 1.0]


def test_two_models_of_one_name_are_two(nodes: dict[str, Any], tmp_path: Path) -> None:
    context, scene = Context(tmp_path), ck.embedded.scene(5)
    for key, name in (("a", "controlnet-canny"), ("b", "t2i-depth")):
        ck.embedded.load(name).save(tmp_path / name)
        context.places[key] = ("edges", tmp_path / name)
    image = context.put(scene.canny)
    made = [
        nodes["controlkit_control"](image=image, model={"key": key}).invoke(context).control for key in "ab"
    ]
    done = nodes["controlkit_generate"](prompt=PROMPT, seed=3, steps=2, controls=made).invoke(context)
    recipe = {
        "prompt": PROMPT,
        "seed": 3,
        "steps": 2,
        "controls": [
            {"module": "embedded:controlnet-canny", "image": scene.canny},
            {"module": "embedded:t2i-depth", "image": scene.canny},
        ],
    }
    picture = context.pictures[done.image.image_name]
    assert np.array_equal(np.asarray(picture), np.asarray(ck.run(recipe)[0]))


def test_a_model_and_a_file_of_its_name_are_two(tmp_path: Path) -> None:
    from controlkit.hosts.invoke.controls import ControlKitControlField, parts_of

    context = Context(tmp_path)
    context.places["a"] = ("edges", tmp_path / "elsewhere")
    file, model = (ControlKitControlField(part={"module": "file:edges"}, model=key) for key in (None, "a"))
    parts, known = parts_of([model, file], context)
    assert [part["module"] for part in parts] == ["file:edges'", "file:edges"]
    assert known == {"file:edges'": tmp_path / "elsewhere"}


def test_a_cancelled_item_ends_as_invokeais_own_do(nodes: dict[str, Any]) -> None:
    context = Context()
    context.cancelled = True
    with pytest.raises(Canceled):
        nodes["controlkit_generate"](prompt=PROMPT, steps=5).invoke(context)
    assert not context.pictures


@pytest.mark.parametrize("text", ["/etc/passwd", "recipe.json", ""])
def test_a_path_in_place_of_a_recipe_is_not_read(nodes: dict[str, Any], text: str) -> None:
    with pytest.raises(ck.RecipeError, match=r"needed (JSON text|one of them)"):
        nodes["controlkit_generate_recipe"](recipe=text).invoke(Context())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "invokeai").glob("*.json")), ids=lambda p: p.stem
)
def test_example_workflows_fit_the_nodes(nodes: dict[str, Any], path: Path) -> None:
    workflow = json.loads(path.read_text())
    kinds = {node["id"]: nodes[node["data"]["type"]] for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        kind, inputs = kinds[node["id"]], node["data"]["inputs"]
        assert node["data"]["version"] == kind.about["version"]
        assert inputs.keys() == kind.model_fields.keys() - {"id", "type"}
        kind(**{name: entry["value"] for name, entry in inputs.items() if entry.get("value") is not None})
    for edge in workflow["edges"]:
        result = inspect.signature(kinds[edge["source"]].invoke).return_annotation
        assert edge["sourceHandle"] in result.model_fields
        assert edge["targetHandle"] in kinds[edge["target"]].model_fields


def test_only_the_public_interface_of_invokeai_is_imported() -> None:
    texts = [path.read_text() for path in (ROOT / "controlkit" / "hosts" / "invoke").glob("*.py")]
    lines = [line for text in texts for line in text.splitlines() if "import" in line and "invokeai" in line]
    assert [line.strip() for line in lines if '"' in line or line.startswith(("from", "import"))] == [
        'return import_module("invokeai.invocation_api")'
    ]
