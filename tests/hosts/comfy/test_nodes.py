"""The nodes without ComfyUI: their inputs, the conditioning they make, and what they refuse."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.hosts.comfy.conditioning import controls_in, with_control, with_tokens
from controlkit.hosts.comfy.pictures import as_pil, from_pil
from controlkit.hosts.written import read_numbers, read_options, read_points
from tests.hosts.comfy import stand_in
from tests.hosts.comfy.networks import uni

MASKS = {"MASK"}
SIMPLE = {"INT": int, "FLOAT": float, "BOOLEAN": bool, "STRING": str}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    stand_in.install(monkeypatch)
    from controlkit.hosts import comfy

    return comfy.NODE_CLASS_MAPPINGS


def test_every_node_takes_its_inputs_and_says_what_it_gives(nodes: dict[str, Any]) -> None:
    from controlkit.hosts import comfy

    assert set(nodes) == set(comfy.NODE_DISPLAY_NAME_MAPPINGS)
    for name, kind in nodes.items():
        parameters = inspect.signature(getattr(kind, kind.FUNCTION)).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        inputs = kind.INPUT_TYPES()
        for group in ("required", "optional"):
            for entry, (sort, *about) in inputs.get(group, {}).items():
                assert entry in parameters or takes_any, (name, entry)
                if group == "optional" and entry in parameters:
                    assert parameters[entry].default is not inspect.Parameter.empty, (name, entry)
                assert about, (name, entry)
                assert about[0]["tooltip"], (name, entry)
                default = about[0].get("default")
                if isinstance(sort, list):
                    assert sort, (name, entry)
                    assert default is None or default in sort, (name, entry)
                elif default is not None:
                    assert isinstance(default, SIMPLE[sort]), (name, entry)
                    if "min" in about[0]:
                        assert about[0]["min"] <= default <= about[0]["max"], (name, entry)
        assert kind.DESCRIPTION, name
        names = getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES)
        assert len(names) == len(kind.RETURN_TYPES)


def test_every_detector_is_a_node_with_its_options(nodes: dict[str, Any]) -> None:
    from controlkit.hosts import comfy

    found = [kind for name, kind in nodes.items() if name.startswith("ControlKitDetect")]
    assert len(found) == len(ck.detectors())
    titles = comfy.NODE_DISPLAY_NAME_MAPPINGS
    assert titles["ControlKitDetectLineartAnime"] == "Detect lineart-anime (ControlKit)"
    optional = nodes["ControlKitDetectCanny"].INPUT_TYPES()["optional"]
    about = {info.name: info for info in ck.detectors()}["canny"]
    assert set(optional) == {option.name for option in about.options} | {"resolution"}


def test_a_detectors_node_gives_the_detectors_map(
    nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    import sys

    paths: Any = sys.modules["folder_paths"]
    paths.get_temp_directory = lambda: str(tmp_path)
    paths.get_save_image_path = lambda name, folder, *_: (folder, name, 1, "", name)
    photo = ck.embedded.scene(3).image
    done = nodes["ControlKitDetectCanny"]().run(from_pil([photo, photo]), low_threshold=60)
    expected = ck.preprocess(photo, "canny", low_threshold=60)
    (maps,) = done["result"]
    assert maps.shape == (2, 128, 128, 3)
    for row, shown in zip(as_pil(maps), done["ui"]["images"], strict=True):
        assert np.array_equal(np.asarray(row), np.asarray(expected))
        assert np.array_equal(np.asarray(Image.open(tmp_path / shown["filename"])), np.asarray(expected))


def test_hidden_pixels_go_through_a_mask(
    nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    import sys

    from controlkit.hosts.comfy.pictures import as_map_of
    from controlkit.preprocessors import marked

    paths: Any = sys.modules["folder_paths"]
    paths.get_temp_directory = lambda: str(tmp_path)
    paths.get_save_image_path = lambda name, folder, *_: (folder, name, 1, "", name)
    photo, box = ck.embedded.scene(3).image, "0.2,0.3,0.7,0.8"
    maps, hidden = nodes["ControlKitDetectInpaint"]().run(from_pil(photo), box=box)["result"]
    assert hidden.shape == (1, 128, 128)
    expected = torch.tensor(marked(ck.preprocess(photo, "inpaint", box=box))).movedim(-1, 0)[None]
    none: dict[str, Any] = {"detect": None}
    assert (expected == -1).any()
    assert torch.equal(as_map_of(maps, none, hidden), expected)
    with pytest.raises(ck.ParameterError, match="the map's size"):
        as_map_of(maps, none, hidden[:, 1:])
    with pytest.raises(ck.ParameterError, match="beside the detector canny"):
        as_map_of(maps, {"detect": "canny"}, hidden)


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (read_points, "", None),
        (read_points, "0: 1, 0.5: 0.2", [(0.0, 1.0), (0.5, 0.2)]),
        (read_points, "0:1\n1:-0.5;", [(0.0, 1.0), (1.0, -0.5)]),
        (lambda text: read_numbers("blocks", text), "1, 0.5,0", [1.0, 0.5, 0.0]),
        (
            read_options,
            "low: 50, auto: true, kind: 'a b', s: 0.5",
            {"low": 50, "auto": True, "kind": "a b", "s": 0.5},
        ),
        (read_options, " ", {}),
    ],
)
def test_texts_are_read(read: Any, text: str, expected: Any) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    ("read", "text", "found"),
    [
        (read_points, "0, 1", "0"),
        (read_points, "a: 1", "a: 1"),
        (lambda text: read_numbers("blocks", text), "1, x", "x"),
        (read_options, "low", "low"),
        (read_options, "low:", "low:"),
    ],
)
def test_texts_that_mean_nothing_are_named(read: Any, text: str, found: str) -> None:
    with pytest.raises(ck.ParameterError, match=found):
        read(text)


def conditioning(seed: int, **entries: Any) -> list[Any]:
    tokens = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(seed))
    return [[tokens, {"pooled_output": None, **entries}]]


class Copied:
    """A control that can be chained."""

    def __init__(self) -> None:
        self.previous: Any = None

    def copy(self) -> Copied:
        return Copied()

    def set_previous_controlnet(self, previous: Any) -> None:
        self.previous = previous


def test_both_halves_share_one_control_where_they_shared_one_before() -> None:
    positive, negative = conditioning(0), conditioning(1)
    first = with_control(Copied(), positive, negative)
    second = with_control(Copied(), *first)
    (a,), (b,) = controls_in(second[0]), controls_in(second[1])
    assert a is b, "or ComfyUI would run the halves one by one"
    assert [a.previous] == controls_in(first[0])
    assert "control" not in positive[0][1], "what was given stays"
    mixed = with_control(Copied(), first[0], negative)
    assert controls_in(mixed[0])[0] is not controls_in(mixed[1])[0]
    assert controls_in(mixed[1])[0].previous is None


def test_extra_tokens_are_for_the_unet_and_not_for_other_controls() -> None:
    given = conditioning(0)
    once = with_tokens(given, lambda tokens: torch.ones(1, 4, tokens.shape[-1]))
    twice = with_tokens(once, lambda tokens: torch.zeros(1, 2, tokens.shape[-1]))
    (tokens, entries) = twice[0]
    assert tokens.shape == (1, 11, 128)
    assert torch.equal(entries["cross_attn_controlnet"], given[0][0])
    assert "cross_attn_controlnet" not in given[0][1]


def test_uni_controlnets_halves_are_tokens_and_a_control(nodes: dict[str, Any]) -> None:
    from controlkit.hosts.comfy.control import EngineControl

    module, scene = uni(), ck.embedded.scene(1)
    embedding = torch.randn(1, 128)
    positive, negative = nodes["ControlKitApplyUni"]().apply(
        conditioning(0),
        conditioning(1),
        EngineControl(module),
        local_strength=0.5,
        global_strength=0.8,
        start=0.0,
        end=1.0,
        mode="balanced",
        content={"image_embeds": embedding},
        canny=from_pil(scene.canny),
    )
    with torch.no_grad():
        own, absent = (0.8 * module.tokens(torch.cat([embedding, torch.zeros_like(embedding)]))).chunk(2)
    longer = torch.cat([conditioning(0)[0][0], own], dim=1)
    torch.testing.assert_close(positive[0][0], longer)
    torch.testing.assert_close(negative[0][0][:, 5:], absent)
    (control,) = controls_in(positive)
    control.pre_run(stand_in.model(), stand_in.percent_to_sigma)
    x, sigma = torch.randn(1, 4, 16, 16), torch.tensor([7.0])
    cond = {"c_crossattn": longer, "crossattn_controlnet": conditioning(0)[0][0]}
    with torch.no_grad():
        lists = control.get_control(x, sigma, cond, 1, stand_in.options(0))
        maps = torch.zeros(1, 21, 128, 128)
        maps[:, :3] = torch.tensor(np.asarray(scene.canny)).float().movedim(-1, 0) / 255
        alone = module.local(x / 50**0.5, sigma * 60, longer, maps)
    torch.testing.assert_close(lists["middle"][0], 0.5 * alone.mid)


@pytest.mark.parametrize(
    ("node", "message"),
    [("ControlKitApply", "a classifier"), ("ControlKitApplyUni", "a classifier")],
)
def test_a_node_for_another_kind_says_so(nodes: dict[str, Any], node: str, message: str) -> None:
    from controlkit.hosts.comfy.control import EngineControl

    window = {"start": 0.0, "end": 1.0, "mode": "balanced"}
    given: dict[str, Any] = {
        "positive": [],
        "negative": [],
        "control_net": EngineControl(ck.embedded.load("classifier")),
    }
    if node == "ControlKitApply":
        given |= {"image": torch.zeros(1, 8, 8, 3), "strength": 1.0}
    else:
        given |= {"local_strength": 1.0, "global_strength": 1.0}
    with pytest.raises(ck.ParameterError, match=message):
        nodes[node]().apply(**given, **window)
    with pytest.raises(ck.ParameterError, match="loaded by another node"):
        nodes[node]().apply(**{**given, "control_net": stand_in.ControlBase()}, **window)
