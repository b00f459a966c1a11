"""From units to controls: files joined, pictures, detectors, what contradicts itself; no web UI."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit import ControlKitError, Guidance, NotApplicable, ParameterError, guidance
from controlkit.hosts.webui import controls
from controlkit.hosts.webui.units import Guide, Unit
from tests import tiny
from tests.adapters.controlnet_union.builders import union
from tests.adapters.ip_adapter import peers
from tests.adapters.uni_controlnet.builders import uni
from tests.hosts.webui import stand_in

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), np.uint8))
MASK = Image.new("L", (96, 48), 255)
P = SimpleNamespace(width=64, height=128, init_images=None, image_mask=None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind in a folder of the web UI's."""
    base = tmp_path_factory.mktemp("webui")
    folder = base / "models" / "ControlNet"
    folder.mkdir(parents=True)
    tiny.controlnet().save(folder / "net")
    encoders = base / "models" / "clip_vision"
    union().save(folder / "union")
    uni().save(folder / "uni")
    peers.load(tiny.unet(), "plain").save(folder / "ip")
    peers.encoder().save_pretrained(encoders / "tiny")
    peers.encoder(projected=768).save_pretrained(encoders / "wider")
    return base


@pytest.fixture(autouse=True)
def host(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.modules(monkeypatch, base)


def unit(folder: str, image: Any = PHOTO, **more: Any) -> Unit:
    return Unit(True, f"{folder}/diffusion_pytorch_model.safetensors", image, **more)


def made(*chosen: Unit, p: Any = P) -> list[Any]:
    return list(controls.of_units(list(enumerate(chosen)), p, {}))


def test_a_unit_is_its_module_bound() -> None:
    (control,) = made(
        unit("net", weight=0.7, start=0.2, end=0.6, mode="control", mask=MASK, block_scales="1, 0.5")
    )
    strength = control.strength
    assert strength.plan(10) == (0, 0, 0.7, 0.7, 0.7, 0.7, 0, 0, 0, 0)
    assert (strength.mode, list(strength.block_scales), tuple(strength.mask.shape)) == (
        "control",
        [1.0, 0.5],
        (1, 1, 48, 96),
    )
    assert torch.equal(control.map.rows, torch.from_numpy(np.array(PHOTO)).movedim(-1, 0)[None] / 255)


def test_what_was_made_for_a_request_is_made_once() -> None:
    kept: dict[str, Any] = {}
    chosen = [(0, unit("net")), (2, unit("net", weight=0.5))]
    first = controls.of_units(chosen, P, kept)
    assert list(kept) == ["unit 0", "unit 2"]
    assert [id(control) for control in controls.of_units(chosen, P, kept)] == [id(c) for c in first]


def test_units_of_one_union_are_one_control() -> None:
    chosen = (
        unit("union", condition="depth", weight=0.5),
        unit("net"),
        unit("union", detector="canny", end=0.5),
    )
    first, second = made(*chosen)
    assert first.name.endswith("depth+canny")
    assert [part.strength.plan(4) for part in first.maps] == [(0.5,) * 4, (1.0, 1.0, 0.0, 0.0)]
    assert not torch.equal(first.maps[0].map.rows, first.maps[1].map.rows), "one is detected"
    assert second.map.rows.shape == first.maps[0].map.rows.shape


def test_units_of_one_uni_controlnet_are_its_maps_and_its_content() -> None:
    (both,) = made(
        unit("uni", condition="canny", weight=0.5),
        unit("uni", condition="seg", weight=0.5),
        unit("uni", condition="content", weight=0.25),
    )
    assert {"skips", "tokens"} <= both.slots
    (maps,) = made(unit("uni", condition="midas"))
    assert "tokens" not in maps.slots
    (content,) = made(unit("uni", condition="content"))
    assert "skips" not in content.slots


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ([Unit(True)], r"unit 0: model"),
        ([unit("none such")], r"net/diffusion_pytorch_model\.safetensors"),
        ([unit("net", None)], r"unit 0: image"),
        ([unit("net", mask="$$")], r"unit 0: mask"),
        ([unit("net", block_scales="1, x")], r"unit 0: block_scales"),
        ([unit("net", start=0.9, end=0.1)], r"start"),
        ([unit("union")], r"what its map shows is not told.*one of openpose, .*canny"),
        ([unit("union", condition="canny"), unit("union", detector="canny")], r"another unit of this file"),
        ([unit("union", condition="canny"), unit("union", condition="depth", mode="control")], r"mode.*same"),
        ([unit("uni", condition="canny"), unit("uni", condition="hed", weight=0.5)], r"weight.*same"),
        ([unit("uni", condition="canny"), unit("uni", condition="hed", mask=MASK, end=0.5)], r"end.*same"),
        ([unit("uni", condition="content"), unit("uni", condition="content")], r"second content picture"),
        ([unit("ip", detector="canny")], r"reads the picture itself"),
        ([unit("ip", encoder="none such")], r"one of Automatic, tiny, wider"),
    ],
)
def test_what_cannot_be_is_told(chosen: list[Unit], told: str) -> None:
    with pytest.raises(ControlKitError, match=f"(?s){told}"):
        made(*chosen)


def test_an_image_prompt_finds_its_encoder() -> None:
    (control,) = made(unit("ip", weight=0.5, mode="control", mask=MASK))
    assert control.slots == {"attention"}
    assert control.strength.mode == "control"


def test_in_img2img_a_unit_without_a_picture_takes_that_one() -> None:
    p = SimpleNamespace(width=64, height=64, init_images=[PHOTO, MASK], image_mask=None)
    assert controls.image_of(Unit(), "unit 0", p) is PHOTO
    assert controls.image_of(Unit(image=MASK), "unit 0", p) is MASK
    with pytest.raises(ParameterError, match="a picture"):
        controls.image_of(Unit(), "unit 0", SimpleNamespace())


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"size": 40.0}, {"size": 40}),
        ({"size": 40.0, "options": "size: 24"}, {"size": 24}),
        ({"pixel_perfect": True}, {"size": 128}),  # 96x48 covers 64x128 at 256x128
        ({"pixel_perfect": True, "resize": "pad"}, {"size": 32}),  # and lies in it at 64x32
        (
            {"pixel_perfect": True, "size": 40.0, "options": "low_threshold: 60"},
            {"size": 128, "low_threshold": 60},
        ),
    ],
)
def test_how_large_a_detector_s_map_is(given: dict[str, Any], options: dict[str, Any]) -> None:
    read = controls.reading(Unit(detector="canny", mask=MASK, **given), "unit 0", PHOTO, P)
    assert read == ("canny", options, MASK)


def test_the_detector_for_inpainting_takes_the_mask() -> None:
    own = Unit(detector="inpaint", mask=MASK)
    assert controls.reading(own, "unit 0", PHOTO, P) == ("inpaint", {"mask": MASK}, None)
    p = SimpleNamespace(width=64, height=64, image_mask=PHOTO)
    lacking = Unit(detector="inpaint")
    assert controls.reading(lacking, "unit 0", PHOTO, p) == ("inpaint", {"mask": PHOTO}, None)
    said = Unit(detector="inpaint", options="box: 1", mask=MASK)
    assert controls.reading(said, "unit 0", PHOTO, P) == ("inpaint", {"box": 1}, MASK)


def test_without_a_detector_the_picture_is_the_map() -> None:
    assert controls.reading(Unit(mask=MASK, pixel_perfect=True), "unit 0", PHOTO, P) == (None, None, MASK)


@pytest.mark.parametrize(
    ("given", "known", "condition"),
    [
        ({"condition": "Canny"}, ("canny", "hed"), "canny"),
        ({"detector": "midas"}, ("canny", "midas"), "midas"),
        ({"detector": "midas"}, ("canny", "depth"), "depth"),
        ({"condition": "segmentation"}, ("seg",), "seg"),
        ({"condition": "segment"}, ("canny", "segmentation"), "segmentation"),
        ({"condition": "softedge"}, ("hed",), "hed"),
        ({"condition": "canny", "detector": "midas"}, ("canny", "depth"), "canny"),
        ({"condition": "canny"}, ("depth",), None),
        ({}, ("canny",), None),
    ],
)
def test_which_condition_a_map_is(
    given: dict[str, Any], known: tuple[str, ...], condition: str | None
) -> None:
    assert controls.condition_of(Unit(**given), known) == condition


@pytest.mark.parametrize(
    ("guide", "phi", "wanted"),
    [
        (Guide(True, "color", color="blue"), guidance.color(), "blue"),
        (Guide(True, "color", image=PHOTO, color="blue"), guidance.color(), PHOTO),
        (Guide(True, "color", color="blue", mask=MASK), guidance.color(mask=MASK), "blue"),
        (Guide(True, "edges", image=PHOTO), guidance.edges(), PHOTO),
        (Guide(True, "region", image=PHOTO), guidance.region(torch.ones(1, 1, 8, 8)), PHOTO),
        (Guide(True, "region", image=PHOTO, mask=MASK), guidance.region(MASK), PHOTO),
    ],
)
def test_guidance_by_its_fields(guide: Guide, phi: Any, wanted: Any) -> None:
    found: Any = controls.guidance_of(guide, "guidance 0")
    assert found.name == f"guidance {guide.function}"
    expected: Any = Guidance(phi, wanted)
    picture = torch.rand(1, 3, 48, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = [made.phi(picture, made.y, torch.tensor(0)) for made in (found, expected)]
    assert torch.equal(*values)
    assert values[0].abs().sum() > 0


def test_how_strongly_and_when_guidance_acts() -> None:
    window = {"strength": 2.0, "start": 0.5, "end": 0.75}
    given = Guide(True, "color", max_norm=3.0, normalize=True, through_unet=True, **window)
    made: Any = controls.guidance_of(given, "guidance 0")
    assert made.strength.plan(4) == (0, 0, 2.0, 0)
    assert (made.max_norm, made.normalize, made.through_unet) == (3.0, True, True)
    plain: Any = controls.guidance_of(Guide(True), "guidance 0")
    assert (plain.max_norm, plain.normalize, plain.through_unet) == (None, False, False)


@pytest.mark.parametrize("function", ["edges", "region"])
def test_guidance_without_its_picture_is_refused(function: str) -> None:
    with pytest.raises(ParameterError, match=f"guidance 0: image.*a picture for {function}"):
        controls.guidance_of(Guide(True, function), "guidance 0")


def test_a_colour_that_is_none_is_refused() -> None:
    with pytest.raises(ControlKitError, match="puce-ish"):
        controls.guidance_of(Guide(True, "color", color="puce-ish"), "guidance 0").prepare(None)  # pyright: ignore


def test_a_style_adapter_has_no_region(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.adapters.style_adapter.test_style import style

    folder = base / "models" / "ControlNet" / "style"
    if not folder.exists():
        style().save(folder)
    for more in ({"mask": MASK}, {"mode": "control"}, {"block_scales": "1"}):
        with pytest.raises(NotApplicable, match="whole picture"):
            made(unit("style", **more))
    (control,) = made(unit("style"))
    assert control.slots == {"tokens"}
