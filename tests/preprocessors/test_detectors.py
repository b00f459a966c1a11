"""What each detector draws: exact numbers where there is a reference, shape and polarity everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlkit.preprocessors import DetectorInfo, detectors, preprocess

cv2 = pytest.importorskip("cv2")

OURS = [info for info in detectors() if info.owner == "controlkit"]
NAMES = [info.name for info in OURS if not info.needs_weights]
NEEDED: dict[str, dict[str, Any]] = {"inpaint": {"box": "0.2,0.3,0.7,0.8"}}
"""Options without which a detector does not run."""
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, NEEDED.get(name, {})) for name in NAMES),
    ("canny", {"auto": True, "sigma": 1.5, "l2": True}),
    ("scribble", {"method": "edges", "thickness": 1}),
    ("lineart", {"texture": 0}),
    ("sobel", {"sigma": 0, "gamma": 0.5}),
    ("threshold", {"method": "fixed", "ink": "bright"}),
    ("threshold", {"method": "adaptive", "block": 3}),
    ("tile", {"factor": 1}),
    ("color", {"cell": 1}),
    ("shuffle", {"scale": 8, "seed": 2**32 - 1}),
    ("recolor", {"method": "intensity", "gamma": 0.5}),
    ("lines", {"length": 0, "thickness": 3, "sigma": 1}),
    ("depth", {"position": 0, "haze": 0}),
    ("depth", {"position": 0, "sharpness": 0, "haze": 0}),
    ("normal", {"source": "depth", "near": "dark", "sigma": 0, "background": 0.4}),
    ("superpixels", {"method": "felzenszwalb"}),
    ("superpixels", {"count": 5000, "merge": 0}),
    ("kmeans", {"colors": 64, "sigma": 0, "seed": 2**31 - 1}),
    ("grabcut", {"box": "0,0,0.5,1", "rounds": 1}),
]


def info(name: str) -> DetectorInfo:
    return next(one for one in detectors() if one.name == name)


def photo(height: int = 96, width: int = 128) -> Image.Image:
    """A scene with a bright disc, a dark bar, a colour ramp and noise."""
    down, across = np.mgrid[:height, :width]
    scene = np.stack([255 * across / width, 255 * down / height, 128 + 0 * down], axis=2)
    scene[(down - height / 2) ** 2 + (across - width / 3) ** 2 < (height / 4) ** 2] = (250, 240, 200)
    scene[height // 5 : height // 4, width // 8 :] = (10, 15, 20)
    scene += np.random.default_rng(5).normal(0, 3, scene.shape)
    return Image.fromarray(scene.clip(0, 255).astype(np.uint8))


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (7, 13), (64, 64), (4096, 1), (1, 4096)])
@pytest.mark.filterwarnings("ignore::controlkit.errors.ControlKitWarning")
def test_every_size_gives_a_map_of_that_size_and_always_the_same(
    name: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(6).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    source = Image.fromarray(noise)
    first = preprocess(source, name, any_aspect=True, **options)
    assert first.mode == "RGB"
    assert first.size == size
    assert first.tobytes() == preprocess(source, name, any_aspect=True, **options).tobytes()
    assert np.array_equal(values(source), noise)


@pytest.mark.parametrize("size", [(5, 7), (33, 64), (200, 200)])
@pytest.mark.parametrize("thresholds", [(100, 200), (50, 80), (0, 0), (200, 200), (12.5, 600)])
@pytest.mark.parametrize("l2", [False, True])
def test_canny_is_opencvs_canny_to_the_pixel(size: Any, thresholds: tuple[float, float], l2: bool) -> None:
    low, high = thresholds
    for source in (
        photo(*size),
        Image.fromarray(np.random.default_rng(7).integers(0, 256, (*size, 3), np.uint8)),
    ):
        ours = preprocess(source, "canny", low_threshold=low, high_threshold=high, l2=l2)
        theirs = cv2.Canny(values(source), low, high, L2gradient=l2)
        assert np.array_equal(values(ours), np.repeat(theirs[..., None], 3, axis=2))


@pytest.mark.filterwarnings("ignore::controlkit.errors.ControlKitWarning")
def test_canny_takes_its_thresholds_from_the_picture_when_asked() -> None:
    dim = Image.fromarray((values(photo()) * 0.15).astype(np.uint8))
    assert not values(preprocess(dim, "canny")).any()
    share = values(preprocess(dim, "canny", auto=True)).mean() / 255
    assert 0.005 < share < 0.2


def test_a_vertical_step_gives_one_vertical_line() -> None:
    step = np.zeros((16, 16, 3), np.uint8)
    step[:, 8:] = 255
    edges = values(preprocess(Image.fromarray(step), "canny"))
    assert (edges[..., 0].any(axis=0)).sum() == 1
    assert edges.max() == 255


MARKS = [("canny", {}), ("scribble", {}), ("scribble", {"method": "edges"}), ("lineart", {}), ("sobel", {})]


@pytest.mark.parametrize(("name", "options"), [*MARKS, ("threshold", {"method": "adaptive"})])
def test_marks_are_white_on_mostly_black(name: str, options: dict[str, Any]) -> None:
    result = values(preprocess(photo(256, 256), name, **options))
    assert result.max() > 200
    assert 0.005 < result.mean() / 255 < 0.35
    assert np.array_equal(result[..., 0], result[..., 1])


@pytest.mark.parametrize(
    ("name", "options"), [("scribble", {}), ("lineart", {}), ("threshold", {}), ("invert", {})]
)
def test_dark_ink_on_white_paper_becomes_white_on_black(name: str, options: dict[str, Any]) -> None:
    paper = np.full((128, 128, 3), 255, np.uint8)
    paper[62:66, 20:108] = 0
    result = values(preprocess(Image.fromarray(paper), name, **options))[..., 0]
    assert result[63:65, 40:90].min() > (180 if name == "lineart" else 200)
    assert result[:40].max() < 10
    assert result[90:].max() < 10


def test_scribbles_are_fully_on_or_off_and_edges_have_the_asked_width() -> None:
    for method in ("xdog", "edges"):
        assert set(np.unique(values(preprocess(photo(256, 256), "scribble", method=method)))) == {0, 255}
    thin, bold = (
        values(preprocess(photo(256, 256), "scribble", method="edges", thickness=t)).mean() for t in (1, 6)
    )
    assert 3 < bold / thin < 9


def test_blur_tile_and_color_keep_the_mean_and_lose_detail() -> None:
    source = photo(256, 256)
    for name in ("blur", "tile", "color"):
        result = values(preprocess(source, name)).astype(float)
        assert abs(result.mean() - values(source).mean()) < 2
        assert (
            np.abs(np.diff(result, axis=0)).mean()
            < np.abs(np.diff(values(source).astype(float), axis=0)).mean()
        )


def test_tile_of_factor_one_is_the_picture() -> None:
    assert np.array_equal(values(preprocess(photo(), "tile", factor=1)), values(photo()))


def test_blur_is_opencvs_gaussian_blur() -> None:
    theirs = cv2.GaussianBlur(values(photo()).astype(np.float32), (0, 0), 3)
    assert np.abs(values(preprocess(photo(), "blur", sigma=3)) - theirs).max() <= 0.501


def test_color_is_made_of_flat_squares_of_the_mean() -> None:
    source = values(photo(128, 192))
    result = values(preprocess(Image.fromarray(source), "color", cell=64))
    for row in range(0, 128, 64):
        for column in range(0, 192, 64):
            square = result[row : row + 64, column : column + 64].reshape(-1, 3)
            assert (square == square[0]).all()
            mean = source[row : row + 64, column : column + 64].reshape(-1, 3).mean(axis=0)
            assert np.abs(square[0] - mean).max() <= 1


def test_shuffle_depends_on_the_seed_alone_and_keeps_the_colours() -> None:
    source = photo(200, 300)
    first, again, other = (values(preprocess(source, "shuffle", seed=s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() >= values(source).min()
    assert first.max() <= values(source).max()


def test_threshold_methods() -> None:
    gray = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(32, axis=0)
    ramp = Image.fromarray(gray)
    fixed = values(preprocess(ramp, "threshold", method="fixed", level=99))[0, :, 0]
    assert (fixed == np.where(np.arange(256) > 99, 0, 255)).all()
    bright = values(preprocess(ramp, "threshold", method="fixed", level=99, ink="bright"))[0, :, 0]
    assert (bright == 255 - fixed).all()
    level, _ = cv2.threshold(gray[..., 0], 0, 255, cv2.THRESH_OTSU)
    otsu = values(preprocess(ramp, "threshold"))[0, :, 0]
    assert (otsu == np.where(np.arange(256) > level, 0, 255)).all()


def test_invert_twice_is_the_picture() -> None:
    twice = preprocess(preprocess(photo(), "invert"), "invert")
    assert np.array_equal(values(twice), values(photo()))


def test_shuffle_refuses_sides_opencv_cannot_take() -> None:
    from controlkit.errors import HintTooBig

    with pytest.raises(HintTooBig, match="32766"):
        preprocess(Image.new("RGB", (33_000, 4)), "shuffle", any_aspect=True)


@pytest.mark.parametrize("about", OURS, ids=lambda about: about.name)
def test_every_detector_says_what_it_is(about: DetectorInfo) -> None:
    assert about.family
    assert about.meaning
    if not about.needs_weights:
        assert about.extra in ("", "opencv-python-headless", "scikit-image")
    elif about.name != "mediapipe-face":  # which brings its network along
        assert about.extra, "networks come from a package"
        assert {"weights", "device", "half", "revision"} <= {option.name for option in about.options}
    for option in about.options:
        assert option.meaning
        if isinstance(option.default, (int, float)) and not isinstance(option.default, bool):
            assert option.low is not None
            assert option.high is not None
            assert option.low <= option.default <= option.high
        elif option.choices:
            assert option.default in option.choices
        else:
            assert option.default is None or isinstance(option.default, (bool, str))
