"""In a real InvokeAI: the pack loads, and its nodes give through the queue what Python gives."""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.hosts.invoke.detectors import node_type
from tests import tiny
from tests.hosts.invoke.server import Failed, Server, maps_of

ROOT = Path(__file__).resolve().parents[3]
PRESENT = ("", "opencv-python-headless")
"""What a detector may need and InvokeAI has."""

CLOSE = 0
"""Levels of 255: the same operations, by other versions of diffusers and torch."""

PROMPT = "a red cube on a sand floor"


@pytest.fixture(scope="module")
def scene() -> ck.embedded.Scene:
    return ck.embedded.scene(5)


def assert_same(one: np.ndarray, other: Image.Image, most: int = CLOSE) -> None:
    expected = np.asarray(other, dtype=int)
    assert one.shape == expected.shape
    assert np.abs(one - expected).max() <= most


def assert_loaded(server: Server, pack: str) -> None:
    assert f"Loaded 1 node pack from {server.base / 'nodes'}: {pack}" in server.start
    for bad in (
        "Failed to load node pack",
        "Traceback",
        "Overriding node",
        "::ERROR",
        "::WARNING",
        "unregistered",
    ):
        lines = [line for line in server.start.splitlines() if bad in line and "git" not in line.lower()]
        assert not lines, lines
    assert server.watched == "", "programs, connections"
    schemas = server.get("/openapi.json")["components"]["schemas"].values()
    ours = [entry["title"] for entry in schemas if entry.get("category") == "controlkit"]
    assert len([title for title in ours if title.startswith("Detect ")]) == len(ck.detectors())
    (found,) = server.get("/api/v2/custom_nodes/")["node_packs"]
    assert found["name"] == pack
    assert found["node_count"] == len(ours) == len(ck.detectors()) + 6


def test_a_clone_called_controlkit_loads(invoke: Server) -> None:
    assert_loaded(invoke, "controlkit")


def test_a_clone_of_another_name_loads_and_runs_too(place: Path, tmp_path: Path, scene: Any) -> None:
    server = Server(tmp_path / "root", "sd-controlkit")
    try:
        assert_loaded(server, "sd-controlkit")
        image = server.upload(scene.image)
        done = server.run({"a": {"type": "controlkit_detect_sobel", "image": image}})
        assert_same(server.pixels(done["a"]), ck.preprocess(scene.image, "sobel"), 0)
        server.post("/api/v2/custom_nodes/reload", {})
        assert "Overriding node" not in server.log, "already registered"
    finally:
        server.stop()


def test_every_detector_that_needs_nothing_gives_its_map_to_the_bit(
    invoke: Server, scene: Any, tmp_path: Path
) -> None:
    needless = [info for info in ck.detectors() if not info.needs_weights and info.extra in PRESENT]
    assert len(needless) >= 15
    image = invoke.upload(scene.image)
    solids = Image.fromarray(((scene.instances > 0) * 255).astype("uint8"))
    mask = invoke.upload(solids)
    graph: dict[str, Any] = {"photo": {"type": "image", "image": image}}
    masked = [info.name for info in needless if "mask" in [option.name for option in info.options]]
    for info in needless:
        graph[info.name] = {"type": node_type(info.name), "image": ("photo", "image")}
        graph[info.name] |= {"mask": mask} if info.name in masked else {}
    done = invoke.run(graph)
    options: dict[str, Any] = {info.name: {"mask": True} if info.name in masked else {} for info in needless}
    expected = maps_of(scene.image, solids, [(name, name, options[name]) for name in options], tmp_path)
    for name, picture in expected.items():
        assert_same(invoke.pixels(done[name]), picture, 0)


def test_options_and_resolution_reach_the_detector(invoke: Server, scene: Any) -> None:
    image = invoke.upload(scene.image)
    options: Any = {"low_threshold": 20.0, "high_threshold": 60.0}
    done = invoke.run(
        {"a": {"type": "controlkit_detect_canny", "image": image, "resolution": 256, **options}}
    )
    assert_same(invoke.pixels(done["a"]), ck.preprocess(scene.image, "canny", resolution=256, **options), 0)


def test_a_wrong_option_is_one_plain_sentence(invoke: Server, scene: Any) -> None:
    image = invoke.upload(scene.image)
    wrong: Any = {"low_threshold": 200.0, "high_threshold": 100.0}
    with pytest.raises(Failed) as caught:
        invoke.run({"a": {"type": "controlkit_detect_canny", "image": image, **wrong}})
    with pytest.raises(ck.ParameterError) as expected:
        ck.preprocess(scene.image, "canny", **wrong)
    assert str(caught.value) == f"ParameterError: {expected.value}"
    assert "\n" not in str(expected.value)


def test_a_value_out_of_range_does_not_enter_the_queue(invoke: Server, scene: Any) -> None:
    image = invoke.upload(scene.image)
    with pytest.raises(Failed, match="less than or equal to 2040"):
        invoke.run({"a": {"type": "controlkit_detect_canny", "image": image, "low_threshold": 5000.0}})


def test_maps_are_checked(invoke: Server, scene: Any) -> None:
    image = invoke.upload(scene.image)
    canny = {"type": "controlkit_detect_canny", "image": image}
    check = {"type": "controlkit_check_map", "condition": "canny"}
    done = invoke.run(
        {"map": canny, "good": {**check, "image": ("map", "image")}, "bad": {**check, "image": image}}
    )
    assert (done["good"]["ok"], done["good"]["fault"]) == (True, "")
    assert (done["bad"]["ok"], done["bad"]["fault"]) == (False, "photograph")
    assert done["bad"]["text"] == str(ck.check_map(scene.image, "canny"))
    with pytest.raises(Failed, match=r"HintError: map; found .*photograph"):
        invoke.run({"bad": {**check, "image": image, "refuse": True}})


def test_a_recipe_gives_the_picture_that_python_gives(invoke: Server, scene: Any) -> None:
    control = {"module": "embedded:controlnet-canny", "image": scene.image, "detect": "canny", "end": 0.8}
    color = {"guidance": "color", "target": "blue", "scale": 2.0}
    recipe = ck.Recipe(prompt=PROMPT, seed=3, steps=4, images=2, controls=(control, color))  # type: ignore[arg-type]
    done = invoke.run({"a": {"type": "controlkit_generate_recipe", "recipe": recipe.to_json()}})["a"]
    expected = ck.run(recipe)
    assert len(done["collection"]) == 2
    for made, picture in zip(done["collection"], expected, strict=True):
        assert_same(invoke.pixels(made), picture)
    name = done["image"]["image_name"]
    metadata = invoke.get(f"/api/v1/images/i/{name}/metadata")
    assert (metadata["positive_prompt"], metadata["seed"], metadata["steps"]) == (PROMPT, 3, 4)
    carried = ck.Recipe.load(metadata["controlkit_recipe"])
    assert carried == ck.Recipe.load(done["recipe"])
    assert np.array_equal(np.asarray(ck.run(carried)[0]), np.asarray(expected[0]))
    listed = invoke.get("/api/v1/images/?categories=general&is_intermediate=false&limit=50")["items"]
    assert name in [entry["image_name"] for entry in listed], "in the gallery"
    assert "map detected by canny" in done["report"]
    again = invoke.run({"a": {"type": "controlkit_generate_recipe", "picture": done["image"]}})["a"]
    assert np.array_equal(invoke.pixels(again), invoke.pixels(done))
    text = invoke.run({"a": {"type": "controlkit_recipe_of", "image": done["image"]}})["a"]["value"]
    assert ck.Recipe.load(text) == carried


def test_fields_and_linked_controls_give_the_picture_that_python_gives(invoke: Server, scene: Any) -> None:
    image = invoke.upload(scene.image)
    canny = {"strength": 0.8, "end": 0.75, "mode": "prompt"}
    depth = {"curve": "0: 1, 1: 0.2", "start": 0.25}
    graph: dict[str, Any] = {
        "a": {"type": "controlkit_control", "image": image, "detector": "canny", **canny},
        "map": {"type": "controlkit_detect_depth", "image": image},
        "b": {
            "type": "controlkit_control",
            "image": ("map", "image"),
            "module": "embedded:t2i-depth",
            **depth,
        },
        "c": {"type": "controlkit_guidance", "function": "color", "target": "blue", "strength": 2.0},
        "all": {"type": "collect", "item": [("a", "control"), ("b", "control"), ("c", "control")]},
        "made": {
            "type": "controlkit_generate",
            "prompt": PROMPT,
            "seed": 11,
            "steps": 4,
            "controls": ("all", "collection"),
        },
    }
    done = invoke.run(graph)["made"]
    net, adapter = ck.embedded.load("controlnet-canny"), ck.embedded.load("t2i-depth")
    made = ck.run(
        {
            "prompt": PROMPT,
            "seed": 11,
            "steps": 4,
            "controls": [
                {
                    "module": "embedded:controlnet-canny",
                    "image": scene.image,
                    "detect": "canny",
                    "scale": 0.8,
                    "end": 0.75,
                    "mode": "prompt",
                },
                {
                    "module": "embedded:t2i-depth",
                    "image": ck.preprocess(scene.image, "depth"),
                    "scale": [[0, 1], [1, 0.2]],
                    "start": 0.25,
                },
                {"guidance": "color", "target": "blue", "scale": 2.0},
            ],
        }
    )[0]
    assert net.kind != adapter.kind
    assert_same(invoke.pixels(done), made)
    plain = invoke.run({"made": {key: value for key, value in graph["made"].items() if key != "controls"}})
    assert np.abs(invoke.pixels(plain["made"]) - invoke.pixels(done)).max() > 20, "the controls are seen"


def test_the_example_workflow_gives_its_picture(invoke: Server, scene: Any) -> None:
    workflow = json.loads((ROOT / "examples" / "invokeai" / "controlnet.json").read_text())
    graph: dict[str, Any] = {}
    for node in workflow["nodes"]:
        entries = node["data"]["inputs"].items()
        values = {name: entry["value"] for name, entry in entries if entry.get("value") is not None}
        graph[node["id"]] = {"type": node["data"]["type"], **values}
    for edge in workflow["edges"]:
        graph[edge["target"]][edge["targetHandle"]] = (edge["source"], edge["sourceHandle"])
    graph["detect"]["image"] = invoke.upload(scene.image)
    done = invoke.run(graph)
    assert done["check"]["ok"]
    fields = {name: graph["generate"][name] for name in ("prompt", "seed", "steps")}
    edges = ck.preprocess(
        scene.image, "canny", **{n: graph["detect"][n] for n in ("low_threshold", "high_threshold")}
    )
    control = {"module": graph["control"]["module"], "image": edges, "scale": graph["control"]["strength"]}
    assert_same(invoke.pixels(done["generate"]), ck.run({**fields, "controls": [control]})[0])


def test_a_folder_below_the_models_folder_is_a_model(invoke: Server) -> None:
    fields = {"prompt": "a", "steps": 2, "width": 64, "height": 64, "folder": "controlkit/tiny"}
    done = invoke.run({"a": {"type": "controlkit_generate", **fields}})["a"]
    model = {"source": "file:controlkit/tiny"}
    recipe = {"model": model, "prompt": "a", "steps": 2, "width": 64, "height": 64}
    assert_same(invoke.pixels(done), ck.run(recipe, models=invoke.base / "models")[0])
    with pytest.raises(Failed, match=r"ParameterError: .*a path with \.\. in it"):
        invoke.run({"a": {"type": "controlkit_generate", **fields, "folder": "../nodes"}})


def test_a_path_in_place_of_a_recipe_is_not_read(invoke: Server) -> None:
    with pytest.raises(Failed, match="RecipeError: recipe; found '/etc/passwd'; needed JSON text"):
        invoke.run({"a": {"type": "controlkit_generate_recipe", "recipe": "/etc/passwd"}})


def test_a_cancelled_picture_ends_and_the_next_is_as_ever(invoke: Server) -> None:
    fields = {"type": "controlkit_generate", "prompt": PROMPT, "seed": 5}
    before = invoke.pixels(invoke.run({"a": {**fields, "steps": 3}})["a"])
    number = invoke.queue({"a": {**fields, "steps": 1000}})
    while invoke.item(number)["status"] == "pending":
        time.sleep(0.1)
    time.sleep(1)
    invoke.post(f"/api/v1/queue/default/i/{number}/cancel", {}, method="PUT")
    assert invoke.wait(number, 30)["status"] == "canceled"
    started = time.monotonic()
    after = invoke.pixels(invoke.run({"a": {**fields, "steps": 3}})["a"])
    assert time.monotonic() - started < 60
    assert np.array_equal(before, after)


def test_the_file_in_the_gallery_carries_the_recipe_as_text(invoke: Server) -> None:
    fields = {"type": "controlkit_generate", "prompt": PROMPT, "seed": 6, "steps": 2}
    done = invoke.run({"a": fields})["a"]
    name = done["image"]["image_name"]
    with urllib.request.urlopen(f"{invoke.url}/api/v1/images/i/{name}/full") as answer:
        text = Image.open(io.BytesIO(answer.read())).info["invokeai_metadata"]
    assert ck.Recipe.load(json.loads(text)["controlkit_recipe"]).seed == 6


def install(server: Server, folder: Path) -> dict[str, Any]:
    """Have InvokeAI's model manager take a folder where it lies; what a model input holds."""
    source = urllib.parse.quote(str(folder))
    job = server.post(f"/api/v2/models/install?source={source}&inplace=true", {})["id"]
    end = time.monotonic() + 60
    found = server.get(f"/api/v2/models/install/{job}")
    while found["status"] not in ("completed", "error", "cancelled") and time.monotonic() < end:
        time.sleep(0.2)
        found = server.get(f"/api/v2/models/install/{job}")
    assert found["status"] == "completed", found.get("error_reason")
    return {key: found["config_out"][key] for key in ("key", "hash", "name", "base", "type")}


def test_models_of_the_model_manager_are_used_where_they_lie(
    invoke: Server, scene: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(invoke.base / "models" / "controlkit" / "tiny", base)
    for number in (1, 2):  # two of one name
        tiny.controlnet(seed=number).save(tmp_path / str(number) / "edges")
    tiny.t2i_adapter().save(tmp_path / "adapter")
    model = install(invoke, base)
    nets = [install(invoke, tmp_path / str(number) / "edges") for number in (1, 2)]
    nets.append(install(invoke, tmp_path / "adapter"))
    assert [model["type"], *(net["type"] for net in nets)] == [
        "main",
        "controlnet",
        "controlnet",
        "t2i_adapter",
    ]
    assert nets[0]["name"] == nets[1]["name"]
    assert nets[0]["key"] != nets[1]["key"]
    image = invoke.upload(scene.canny)
    graph: dict[str, Any] = {
        str(number): {"type": "controlkit_control", "image": image, "model": net, "strength": 0.7}
        for number, net in enumerate(nets)
    }
    fields = {"prompt": "a", "seed": 4, "steps": 2, "width": 64, "height": 64}
    graph["all"] = {"type": "collect", "item": [(str(number), "control") for number in range(3)]}
    graph["made"] = {
        "type": "controlkit_generate",
        "model": model,
        "controls": ("all", "collection"),
        **fields,
    }
    done = invoke.run(graph)["made"]
    sources = [f"file:{place}" for place in ("1/edges", "2/edges", "adapter")]
    controls = [{"module": source, "image": scene.canny, "scale": 0.7} for source in sources]
    recipe = {"model": {"source": "file:base"}, "controls": controls, **fields}
    assert_same(invoke.pixels(done), ck.run(recipe, models=tmp_path)[0])
