"""Where a doubtful map is told: when it is bound, in the report, on the command line; and what it says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.binding import read_map
from controlkit.cli import main
from controlkit.embedded import PALETTE
from tests.maps.pictures import negative, normals, recoloured

VIEW = ck.embedded.scene(31)

SAID = [
    (VIEW.image, "canny", "photograph", 'detect="canny"'),
    (negative(VIEW.canny), "canny", "inverted", "Invert"),
    (negative(VIEW.depth), "depth", "near dark", "Invert"),
    (VIEW.image, "depth", "photograph", 'detect="depth"'),
    (VIEW.canny, "depth", "another kind", 'detect="depth"'),
    (normals(VIEW.depth), "depth", "another kind", 'detect="depth"'),
    (VIEW.depth, "canny", "another kind", 'detect="canny"'),
    (recoloured(VIEW.seg, 1), "seg", "palette", "colours"),
    (Image.new("RGB", (64, 64)), "openpose", "blank", "nothing in it"),
    (VIEW.canny, "tile", "another kind", "photograph itself"),
    (VIEW.canny, "mlsd", "", ""),
    (VIEW.canny, "HED", "", ""),
    (VIEW.depth, "midas", "", ""),
    (VIEW.image, "ip2p", "", ""),
    (VIEW.image.resize((16, 16)), "canny", "", ""),
]


@pytest.mark.parametrize(("picture", "condition", "fault", "advice"), SAID)
def test_it_names_the_fault_and_what_to_do(
    picture: Image.Image, condition: str, fault: str, advice: str
) -> None:
    check = ck.check_map(picture, condition)
    assert (check.fault, check.ok) == (fault, not fault)
    assert advice in check.fix
    assert bool(check.message) == bool(fault)
    assert condition in str(check)
    assert 0.5 <= check.sure <= 1


@pytest.mark.parametrize(
    ("palette", "ok"),
    [(None, True), ("embedded", True), (PALETTE, True), ("coco", False), ([(0, 0, 0)], False)],
)
def test_labels_are_compared_with_the_palette_that_is_given(palette: Any, ok: bool) -> None:
    assert ck.check_map(VIEW.seg, "seg", palette=palette).ok is ok


def test_of_several_the_most_doubtful_is_told() -> None:
    assert ck.check_map([VIEW.canny, VIEW.canny.resize((256, 256))], "canny").ok
    assert ck.check_map([VIEW.canny, VIEW.image.resize((256, 256))], "canny").fault == "photograph"
    assert ck.check_map(torch.zeros(2, 3, 64, 64), "canny").fault == "blank"


@pytest.mark.parametrize(
    ("condition", "palette", "said"),
    [("cany", None, "canny"), (3, None, "canny"), ("seg", "ade", "ade20k"), ("seg", [(1, 2)], "colours")],
)
def test_wrong_words_are_refused_with_the_right_ones(condition: Any, palette: Any, said: str) -> None:
    with pytest.raises(ck.ParameterError, match=said):
        ck.check_map(VIEW.seg, condition, palette=palette)


def test_a_bound_module_warns_and_the_report_repeats_it() -> None:
    module = ck.embedded.load("controlnet-canny")
    with pytest.warns(ck.MapDoubted, match="photograph"):
        control = module.on(VIEW.image)
    pipe = ck.embedded.pipeline()
    with ck.attach(pipe, control) as run:
        pipe("a red cube on a sand floor", num_inference_steps=1, output_type="latent")
    assert any("doubtful map" in note for note in run.report().rows[0].notes)


@pytest.mark.filterwarnings("error::controlkit.errors.MapDoubted")
def test_right_maps_and_unknown_conditions_are_bound_in_silence() -> None:
    module = ck.embedded.load("controlnet-canny")
    module.on(VIEW.canny)
    module.on(VIEW.image, detect="canny", detect_options={"auto": True})
    module.on(VIEW.image, condition="tile")
    module.on(VIEW.image, condition="qrcode")
    module.condition = None
    module.on(VIEW.image)


@pytest.mark.parametrize(
    ("image", "condition", "order", "warns"),
    [
        (VIEW.image, "canny", None, True),
        (VIEW.image, None, None, False),
        (VIEW.image, "type 9", None, False),
        (normals(VIEW.depth), "normal", "bgr", False),
        ([VIEW.canny, VIEW.image], "canny", None, True),
    ],
)
def test_every_map_of_a_known_condition_is_looked_at(
    image: Any, condition: str | None, order: Any, warns: bool
) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bound = read_map(
            image,
            channels=3,
            detect=None,
            detect_options=None,
            resize="stretch",
            channel_order=order,
            condition=condition,
        )
    assert [entry.category for entry in seen] == [ck.MapDoubted] * warns
    assert any("doubtful" in note for note in bound.notes) is warns


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    VIEW.image.save(tmp_path / "photo.png")
    VIEW.canny.save(tmp_path / "edges.png")
    files = [str(tmp_path / "photo.png"), str(tmp_path / "edges.png")]
    assert main(["check-map", *files, "--condition", "canny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["fault"] for entry in found] == ["photograph", ""]
    assert main(["check-map", files[0], "-c", "canny"]) == 0
    assert 'detect="canny"' in capsys.readouterr().out
    assert main(["check-map", files[0], "-c", "cany"]) == 2


def test_generate_says_it_before_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    VIEW.image.save(tmp_path / "photo.png")
    control = f"controlnet-canny={tmp_path / 'photo.png'}"
    out = str(tmp_path / "out.png")
    assert main(["generate", "a red cube", "-c", control, "--steps", "1", "--out", out]) == 0
    said = capsys.readouterr().err
    assert said.index("note: the map for canny is doubtful") < said.index("doubtful map:")


def test_hidden_pixels_are_no_fault() -> None:
    picture = np.asarray(VIEW.image, np.float32) / 255
    picture[30:60, 30:60] = -1
    assert ck.check_map(picture, "inpaint").ok
