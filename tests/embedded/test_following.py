"""How well a picture follows any map: exact ones, other scenes' maps, and what cannot be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit import embedded
from controlkit.evaluation.following import follow
from controlkit.evaluation.scoring import Scorer
from controlkit.recipes import Files

KINDS = [("canny", "canny", 0.3), ("embedded-depth", "depth", 0.6), ("embedded-segmentation", "seg", 0.2)]
"""Detector, condition, and what unrelated pictures stay below on average."""


@pytest.mark.parametrize(("detector", "condition", "chance"), KINDS)
def test_a_scene_follows_its_own_map_and_not_anothers(detector: str, condition: str, chance: float) -> None:
    scenes = [embedded.scene(seed) for seed in range(4)]
    maps = [ck.preprocess(scene.image, detector) for scene in scenes]
    for scene, own in zip(scenes, maps, strict=True):
        again = follow(scene.image, own, detect=detector)
        assert again.value == pytest.approx(1.0)
        assert again.by == detector
        given = follow(scene.image, getattr(scene, condition), condition=condition, base="embedded")
        assert given.by == detector
        assert given.value is not None
        assert given.value > 0.85
    others = [follow(a.image, m, detect=detector).value for a in scenes for m in maps]
    unrelated = [value for number, value in enumerate(others) if number % 5]
    assert np.mean([value for value in unrelated if value is not None]) < chance


@pytest.mark.parametrize("detector", ["scribble", "lineart", "sobel", "lines", "color", "tile", "recolor"])
def test_other_detectors_measure_too(detector: str) -> None:
    one, other = embedded.scene(1).image, embedded.scene(2).image
    wanted = ck.preprocess(one, detector)
    same, different = follow(one, wanted, detect=detector), follow(other, wanted, detect=detector)
    assert same.value == pytest.approx(1.0)
    assert different.value is not None
    assert different.value < 0.9


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"detect": "shuffle"}, "not places"),
        ({"detect": "depth"}, "no detector without weights measures depth"),
        ({"detect": "kmeans"}, "mean nothing"),
        ({"condition": "openpose"}, "no detector without weights measures openpose"),
        ({"condition": "depth", "base": "sd1"}, "without weights"),
        ({"condition": "inpaint"}, "hidden part"),
        ({}, "not known"),
    ],
)
def test_what_cannot_be_measured_is_said_with_the_reason(given: dict[str, str], says: str) -> None:
    picture = embedded.scene(1).image
    score = follow(picture, picture, **given)  # pyright: ignore[reportArgumentType]
    assert score.value is None
    assert says in str(score)
    assert str(score).startswith("not measured")


def test_only_the_region_counts() -> None:
    left, right = embedded.scene(1).image, embedded.scene(2).image
    both = left.copy()
    both.paste(right.crop((64, 0, 128, 128)), (64, 0))
    wanted = ck.preprocess(left, "canny")
    region = np.zeros((128, 128), bool)
    region[:, :60] = True
    inside = follow(both, wanted, detect="canny", region=region).value
    outside = follow(both, wanted, detect="canny", region=~region).value
    assert inside is not None
    assert outside is not None
    assert inside > 0.9 > outside
    assert follow(both, wanted, detect="canny", region=region & ~region).value is None


def test_a_flat_map_and_one_without_labels_are_not_measured() -> None:
    picture, flat = embedded.scene(1).image, Image.new("RGB", (128, 128))
    assert follow(picture, flat, condition="depth", base="embedded").value is None
    assert follow(picture, flat, condition="seg", base="embedded").value is None
    assert follow(picture, flat, condition="canny").value == 0.0
    with pytest.raises(ValueError, match="resize"):
        follow(picture, Image.new("RGB", (64, 64)), condition="canny")


def test_a_recipe_is_scored_control_by_control() -> None:
    scene = embedded.scene(3)
    values: dict[str, Any] = {
        "prompt": "x",
        "controls": [
            {"guidance": "color", "target": "red"},
            {
                "module": "embedded:controlnet-canny",
                "image": scene.image.resize((256, 256)),
                "detect": "canny",
            },
            {"module": "embedded:t2i-depth", "image": scene.depth, "mask": Image.new("L", (8, 8), 255)},
            {"module": "hub:nobody/nothing", "image": scene.image},
        ],
    }
    scorer = Scorer(Files())
    scores = scorer.scores(ck.Recipe.load(values), scene.image)
    assert [score["control"] for score in scores] == [1, 2, 3]
    assert [score["measure"] for score in scores] == ["edges", "depth", ""]
    assert scores[0]["value"] > 0.5
    assert scores[1]["value"] > 0.9
    assert "not known" in scores[2]["why"]
    assert len(scorer._seen) == 3
    assert scorer.scores(ck.Recipe.load(values), scene.image) == scores
    assert len(scorer._seen) == 3
