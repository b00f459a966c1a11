"""The embedded world's own detectors against exact maps of scenes that no model has seen."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.embedded import PALETTE

SCENES = [ck.embedded.scene(seed) for seed in range(900, 924)]


def detected(picture: Image.Image, name: str) -> np.ndarray:
    made = ck.preprocess(picture, name)
    assert made.size == picture.size
    return np.asarray(made)


def test_depth_agrees_with_the_exact_one() -> None:
    correlations, errors = [], []
    for view in SCENES:
        exact, seen = np.asarray(view.depth, float), detected(view.image, "embedded-depth").astype(float)
        assert (seen[..., 0] == seen[..., 2]).all()
        correlations.append(np.corrcoef(exact[..., 0].ravel(), seen[..., 0].ravel())[0, 1])
        errors.append(np.abs(exact - seen).mean())
    assert np.min(correlations) > 0.97
    assert np.mean(correlations) > 0.99
    assert np.mean(errors) < 5


def test_segmentation_agrees_with_the_exact_one() -> None:
    both, either = np.zeros(len(PALETTE)), np.zeros(len(PALETTE))
    for view in SCENES:
        seen = detected(view.image, "embedded-segmentation")
        for label, colour in enumerate(PALETTE):
            found, exact = (seen == colour).all(axis=2), view.labels == label
            both[label] += (found & exact).sum()
            either[label] += (found | exact).sum()
    assert (either > 0).all()
    assert np.mean(both / either) > 0.85


@pytest.mark.parametrize("size", [(640, 384), (97, 61), (1, 4)])
@pytest.mark.parametrize("name", ["embedded-depth", "embedded-segmentation"])
def test_maps_have_the_size_and_values_of_their_kind(name: str, size: tuple[int, int]) -> None:
    seen = detected(SCENES[0].image.resize(size), name)
    if name == "embedded-segmentation":
        assert {tuple(colour) for colour in seen.reshape(-1, 3).tolist()} <= set(PALETTE)
    else:
        assert (seen.max(axis=2) == seen.min(axis=2)).all()


def test_the_network_is_read_when_it_is_first_used() -> None:
    code = (
        "import sys, controlkit.preprocessors.embedded; print('controlkit.evaluation.judge' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.filterwarnings("error::controlkit.errors.MapDoubted")
def test_from_a_picture_to_a_control_that_nobody_doubts() -> None:
    module = ck.embedded.load("t2i-depth")
    module.on(SCENES[1].image, detect="embedded-depth")
    seen = ck.preprocess(SCENES[1].image, "embedded-segmentation")
    assert ck.check_map(seen, "seg", palette="embedded").ok
