"""``resolution``: the detector looks at another size, and the map has the photograph's all the same."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

import controlkit as ck
from controlkit.binding import read_map
from controlkit.errors import ParameterError
from controlkit.preprocessors import TRAINED

PHOTO = Image.fromarray(data.astronaut()).resize((300, 200), Image.Resampling.LANCZOS)


def pixels(*given: Any, **options: Any) -> np.ndarray:
    return np.asarray(ck.preprocess(*given, **options))


@pytest.mark.parametrize("resolution", [64, 200, 333, "auto"])
@pytest.mark.parametrize("name", ["canny", "scribble", "lineart", "depth", "kmeans", "embedded-depth"])
def test_the_map_has_the_photographs_size(name: str, resolution: int | str) -> None:
    assert ck.preprocess(PHOTO, name, resolution=resolution).size == PHOTO.size


def test_looking_at_the_maps_own_size_changes_nothing() -> None:
    for name in ("canny", "lineart", "depth", "inpaint"):
        options = {"box": "0.2,0.2,0.6,0.6"} if name == "inpaint" else {}
        assert np.array_equal(pixels(PHOTO, name, resolution=200, **options), pixels(PHOTO, name, **options))


def test_a_detector_sees_the_photograph_at_that_resolution() -> None:
    small = PHOTO.resize((150, 100), Image.Resampling.LANCZOS)
    seen = pixels(PHOTO, "sobel", resolution=100)
    mean = cv2.resize(seen, (150, 100), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(mean - pixels(small, "sobel")).mean() < 6
    assert np.abs(mean - cv2.resize(pixels(PHOTO, "sobel"), (150, 100)).astype(float)).mean() > 6


def test_lines_stay_thin_and_binary() -> None:
    seen = pixels(PHOTO, "canny", resolution=100)[..., 0]
    assert set(np.unique(seen)) == {0, 255}
    solid = cv2.erode(seen, np.ones((3, 3), np.uint8))
    assert (seen > 0).mean() > 0.02
    assert solid.sum() == 0, "no place is three pixels broad"


def test_labels_stay_labels() -> None:
    view = ck.embedded.scene(3).image.resize((301, 203))
    seen = pixels(view, "embedded-segmentation", resolution=96).reshape(-1, 3)
    assert {tuple(each) for each in np.unique(seen, axis=0).tolist()} <= set(ck.embedded.PALETTE)


def test_hidden_pixels_follow() -> None:
    made = ck.preprocess(PHOTO, "inpaint", box="0.5,0,1,1", resolution=50)
    hidden = np.asarray(made.info["hidden"])
    assert hidden.shape == (200, 300)
    assert set(np.unique(hidden)) == {0, 255}
    assert abs((hidden > 0).mean() - 0.5) < 0.02


def test_with_size_both_hold() -> None:
    assert ck.preprocess(PHOTO, "depth", size=(90, 60), resolution=120).size == (90, 60)


@pytest.mark.parametrize("wrong", [0, -3, 1.5, True, "512", "large", (64, 64), float("nan")])
def test_a_resolution_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ParameterError, match="resolution"):
        ck.preprocess(PHOTO, "canny", resolution=wrong)


@pytest.mark.parametrize("base", [*TRAINED, "other"])
def test_auto_is_what_the_base_model_was_trained_on(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stand_in(image: Any, detector: str, **options: Any) -> Any:
        seen.append(options["resolution"])
        return image

    monkeypatch.setattr("controlkit.preprocessors.preprocess", stand_in)
    read_map(
        PHOTO,
        channels=3,
        detect="canny",
        detect_options={"resolution": "auto"},
        resize="stretch",
        channel_order=None,
        base=base,
    )
    assert seen == [{"sd1": 512, "sd2": 768, "sdxl": 1024, "embedded": 128}.get(base, "auto")]


def test_on_gives_its_modules_base() -> None:
    module = ck.embedded.load("controlnet-canny")
    bound: Any = module.on(PHOTO, detect="canny", detect_options={"resolution": "auto"})
    wanted = pixels(PHOTO, "canny", resolution=TRAINED[module.base]).transpose(2, 0, 1)[None]
    assert np.array_equal((bound.map.rows * 255).round().byte().numpy(), wanted)
