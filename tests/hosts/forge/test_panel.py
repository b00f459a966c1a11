"""Our detectors and control files as Forge's own ControlNet panel gets them; with a stand-in for Forge."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import controlkit as ck
from controlkit.hosts.webui.controls import CONTENT
from controlkit.preprocessors import detectors, preprocess
from tests import tiny
from tests.adapters.controlnet.relative_cases import made
from tests.adapters.controlnet_union.builders import union
from tests.adapters.uni_controlnet.builders import LOCAL, TOKENS, uni
from tests.hosts.forge import stand_in

PHOTO = np.kron(np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
MAP = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Forge's registry, with ours in it."""
    found = stand_in.install(monkeypatch, tmp_path)
    from controlkit.hosts.forge.panel import register

    register()
    return found


def test_every_detector_is_a_preprocessor(shared: Any) -> None:
    from controlkit.hosts.forge.detectors import MAPS

    found = shared.supported_preprocessors
    names = {info.name for info in detectors() if info.family != "inpaint"}
    assert len(found) == len(names) + len(MAPS) + 1
    assert {f"ControlKit {name}" for name in names - {"openpose"}} < set(found)
    assert not any("openpose" in name for name in found), "of such a name Forge's API expects more"
    assert all(one.sorting_priority < 0 for one in found.values()), "Forge's own come first"
    for one in found.values():
        sliders = (one.slider_1, one.slider_2, one.slider_3)
        for slider in (s.gradio_update_kwargs for s in sliders if s.gradio_update_kwargs["visible"]):
            assert slider["minimum"] <= slider["value"] <= slider["maximum"]


@pytest.mark.parametrize(
    ("name", "sliders", "options"),
    [
        ("canny", (60, 300), {"low_threshold": 60, "high_threshold": 300}),
        ("canny", (300, 60), {"low_threshold": 60, "high_threshold": 300}),
        ("canny", (-1, 140), {"high_threshold": 140}),
        ("canny", (), {}),
        ("blur", (3.0, 77.0), {"sigma": 3.0}),
        ("tile", (1e6,), {}),
        ("kmeans", (4.0, 1.0), {"colors": 4, "sigma": 1.0}),
    ],
)
def test_its_sliders_are_our_options(
    shared: Any, name: str, sliders: tuple[float, ...], options: dict[str, Any]
) -> None:
    one = shared.supported_preprocessors[f"ControlKit {name}"]
    found = one(PHOTO, 96, *sliders, input_mask=None, json_pose_callback=None)
    assert found.dtype == np.uint8
    assert found.flags.writeable, "Forge resizes it in place"
    assert np.array_equal(found, np.asarray(preprocess(Image.fromarray(PHOTO), name, size=96, **options)))


def test_a_picture_with_transparency_is_read_without(shared: Any) -> None:
    clear = np.concatenate([PHOTO, np.full((64, 64, 1), 7, np.uint8)], axis=2)
    one = shared.supported_preprocessors["ControlKit canny"]
    assert np.array_equal(one(clear, 64), one(PHOTO, 64))
    assert shared.supported_preprocessors["ControlKit whole picture"](clear, 64).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("name", "shows"),
    [
        ("ControlKit hed", "softedge"),
        ("ControlKit map: depth", "depth"),
        ("ControlKit whole picture", CONTENT),
        ("softedge_hed", "softedge"),
        ("openpose_full", "openpose"),
        ("None", None),
        ("CLIP-ViT-H (IPAdapter)", None),
    ],
)
def test_what_maps_show_is_told_by_the_preprocessor(shared: Any, name: str, shows: str | None) -> None:
    from controlkit.hosts.forge.detectors import shown_by

    one = shared.supported_preprocessors.get(name, SimpleNamespace(name=name))
    assert shown_by(one) == shows
    assert shown_by(None) is None


def weights(kind: str, folder: Path) -> dict[str, Tensor]:
    """A file of a kind."""
    if kind == "uni-controlnet":
        uni().save(folder)
    elif kind == "controlnet-union":
        union("sd1").save(folder)
    elif kind == "controlnet":
        tiny.controlnet("sd1").save(folder)
    else:
        file, _, _ = made(kind)
        save_file({name: value.contiguous() for name, value in file.items()}, folder / "file.safetensors")
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


class Theirs(stand_in.ControlModelPatcher):
    """A class of Forge's, that knows some files and fails at others."""

    answer: Any = None
    asked = 0

    @classmethod
    def try_build_from_state_dict(cls, state_dict: dict[str, Tensor], ckpt_path: str) -> Any:
        cls.asked += 1
        state_dict.clear()
        if isinstance(cls.answer, Exception):
            raise cls.answer
        return cls.answer


@pytest.mark.parametrize("kind", ["uni-controlnet", "controlnet-union", "controlnet-difference"])
def test_what_forge_would_misread_is_ours(shared: Any, tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(Theirs, "answer", "theirs")
    shared.supported_control_models[1:] = [Theirs]
    ours = shared.supported_control_models[0]
    built = ours.try_build_from_state_dict(weights(kind, tmp_path), str(tmp_path / "x.safetensors"))
    assert isinstance(built, ours)


@pytest.mark.parametrize("answer", ["theirs", None, TypeError("of another shape")])
@pytest.mark.parametrize("kind", ["controlnet", "control-lora"])
def test_what_forge_does_stays_with_it_where_it_can(
    shared: Any, tmp_path: Path, kind: str, answer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Theirs, "answer", answer)
    shared.supported_control_models[1:] = [Theirs]
    ours, state = shared.supported_control_models[0], weights(kind, tmp_path)
    count = len(state)
    built = ours.try_build_from_state_dict(state, str(tmp_path / "x.safetensors"))
    assert built == "theirs" if answer == "theirs" else isinstance(built, ours)
    assert len(state) == count, "each is asked with a copy"


def test_other_files_are_left_to_forge(shared: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Theirs, "asked", 0)
    shared.supported_control_models[1:] = [Theirs]
    ours = shared.supported_control_models[0]
    for state in ({}, {"lllite_unet.weight": torch.zeros(1)}, {"ip_adapter": {"1.weight": torch.zeros(1)}}):
        assert ours.try_build_from_state_dict(state, "x.pth") is None
    assert Theirs.asked == 0


def test_registering_again_changes_nothing(shared: Any) -> None:
    from controlkit.hosts.forge.panel import register

    before = list(shared.supported_control_models), set(shared.supported_preprocessors)
    register()
    assert (shared.supported_control_models, set(shared.supported_preprocessors)) == before
    assert shared.supported_control_models[1:] == [stand_in.ControlModelPatcher]


@pytest.mark.parametrize(
    ("module", "whole", "shows", "told"),
    [
        ("uni", False, None, "ControlKit map: ..."),
        ("uni", False, "color", "whose maps show color"),
        ("uni", True, "canny", "one for maps"),
        ("union", True, CONTENT, "one for maps"),
        ("union", False, "superpixels", "one for maps of openpose"),
        ("style", False, "canny", "ControlKit whole picture"),
        ("uni", True, CONTENT, "a CLIP vision model"),
    ],
)
def test_what_does_not_go_together_is_told(
    shared: Any, module: str, whole: bool, shows: str | None, told: str
) -> None:
    from controlkit.adapters.style_adapter import StyleAdapter, StyleAdapterConfig
    from controlkit.hosts.forge.detectors import Picture
    from controlkit.hosts.forge.modules import bound

    made_of: dict[str, Any] = {
        "uni": lambda: uni(0, LOCAL, TOKENS),
        "union": lambda: union("sd1"),
        "style": lambda: StyleAdapter(StyleAdapterConfig(width=24, num_head=2, n_layes=1)),
    }
    with pytest.raises(ck.ControlKitError, match=told):
        bound(made_of[module](), Picture(PHOTO) if whole else MAP, shows, 1.0)


def placed(shared: Any, place: Path, **given: Any) -> Any:
    """A unit of Forge's panel put on a model, for the embedded adapter's file."""
    ck.embedded.load("t2i-depth").save(place)
    unit = shared.supported_control_models[0](place / "diffusion_pytorch_model.safetensors")
    unit.strength, unit.start_percent, unit.end_percent = 0.5, 0.25, 0.75
    model = stand_in.loaded()
    params = SimpleNamespace(preprocessor=None)
    with torch.inference_mode():
        unit.process_before_every_sampling(
            SimpleNamespace(sd_model=model), MAP, given.get("mask"), params=params
        )
    return model


def test_a_file_that_does_not_fit_ends_the_picture(shared: Any, tmp_path: Path) -> None:
    """The embedded adapter has other widths than the stand-in's U-Net."""
    model = placed(shared, tmp_path)
    with pytest.raises(ck.ControlKitError):
        stand_in.sample(None, SimpleNamespace(sd_model=model))
    made_after = stand_in.sample(None, SimpleNamespace(sd_model=model))
    assert torch.equal(made_after, stand_in.sample(None, SimpleNamespace(sd_model=stand_in.loaded())))


@pytest.mark.parametrize("masked", [False, True])
def test_its_window_and_mask_are_forges(
    shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    from controlkit.hosts.forge import modules
    from tests.hosts.forge.test_sampling import adds, by_hooks

    monkeypatch.setattr(modules, "bound", lambda *_: adds())
    mask = torch.zeros(1, 1, 64, 64) if masked else None
    model = placed(shared, tmp_path, mask=mask)
    found = stand_in.sample(None, SimpleNamespace(sd_model=model))
    # of the levels 14, 7, 3, 1 those from 10.5 to 3.5 are within a quarter and three quarters
    wanted = by_hooks(adds(start=0.25, end=0.5, scale=0.0 if masked else 1.0))
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-4)
