"""Every detector without weights on ten photographs, and on whatever hypothesis calls a picture."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data

from controlkit.errors import ControlKitError, ControlKitWarning
from controlkit.preprocessors import detectors, preprocess

PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "hubble_deep_field",
    "page",
    "rocket",
)
DETECTORS = [info.name for info in detectors() if info.owner == "controlkit" and not info.needs_weights]
NEEDED: dict[str, dict[str, Any]] = {"inpaint": {"box": "0.2,0.3,0.7,0.8"}}
BINARY = {"canny", "scribble", "lines", "threshold", "grabcut"}
GRAY = BINARY | {"lineart", "sobel", "depth", "recolor"}
MAY_BE_FLAT = {"grabcut", "lines", "blur", "color", "embedded-depth", "embedded-segmentation"}
"""On a photograph of a wall, of coins, or of one without a foreground."""
SLOW = {"grabcut", "superpixels", "kmeans"}
SHARE = {  # of white, on the mean over the ten: marks are few, and there are some
    "canny": (0.03, 0.3),
    "scribble": (0.01, 0.2),
    "lineart": (0.01, 0.3),
    "sobel": (0.03, 0.4),
    "lines": (0.005, 0.15),
}


@cache
def photo(name: str, side: int = 144) -> Image.Image:
    """A photograph of scikit-image, shrunk to a shortest side."""
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    factor = side / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def drawn(image: Any, name: str) -> Image.Image:
    result = preprocess(image, name, any_aspect=True, **NEEDED.get(name, {}))
    if isinstance(result, list):
        (result,) = result
    assert isinstance(result, Image.Image)
    return result


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.filterwarnings("ignore::controlkit.errors.ControlKitWarning")
def test_ten_photographs(name: str) -> None:
    whites = []
    for title in PHOTOS:
        source = photo(title, 96 if name in SLOW else 144)
        first, again = drawn(source, name), drawn(source, name)
        assert first.size == source.size, title
        assert first.mode == "RGB"
        assert first.tobytes() == again.tobytes(), f"{title}: not the same twice"
        values = np.asarray(first)
        whites.append(values.mean() / 255)
        if name not in MAY_BE_FLAT:
            assert values.max() - values.min() > 15, f"{title}: next to nothing drawn"
        if name in BINARY:
            assert set(np.unique(values)) <= {0, 255}, title
        if name in GRAY:
            assert (values == values[..., :1]).all(), title
        if name == "depth":
            assert (values.min(), values.max()) == (0, 255), title
        if name == "normal":
            lengths = np.linalg.norm(values.astype(float) / 127.5 - 1, axis=2)
            assert np.abs(lengths - 1).max() < 0.02, title
            assert values[..., 2].min() > 127, title
        if name == "kmeans":
            assert 2 < len(np.unique(values.reshape(-1, 3), axis=0)) <= 8, title
    low, high = SHARE.get(name, (0, 1))
    assert low <= np.mean(whites) <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.filterwarnings("ignore::controlkit.errors.ControlKitWarning")
def test_ten_photographs_at_full_size(name: str) -> None:
    for title in PHOTOS:
        source = Image.fromarray(getattr(data, title)())
        assert drawn(source, name).size == source.size


@pytest.mark.parametrize("title", PHOTOS)
@pytest.mark.filterwarnings("ignore::controlkit.errors.ControlKitWarning")
def test_canny_is_opencvs_on_photographs(title: str) -> None:
    source = photo(title, 320)
    theirs = cv2.Canny(np.asarray(source), 100, 200)
    assert np.array_equal(np.asarray(drawn(source, "canny")), np.repeat(theirs[..., None], 3, axis=2))


SIDES = st.one_of(st.integers(1, 12), st.integers(1, 70))
SIZES = st.one_of(st.tuples(SIDES, SIDES), st.sampled_from([(1, 1), (1, 4096), (4096, 1), (2, 1), (1, 3)]))
MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F")
TYPES = ("uint8", "uint16", "bool", "float16", "float32", "float64", "int32", "complex64")
FILLS = ("noise", "flat", "ramp", "two tones", "one pixel")


def filled(fill: str, width: int, height: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8 of one of the kinds of content."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (2, 3), dtype=np.uint8)
    plane = np.broadcast_to(colours[0], (height, width, 3)).copy()
    if fill == "noise":
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if fill == "ramp":
        return np.linspace(0, 255, plane.size).astype(np.uint8).reshape(plane.shape)
    if fill == "two tones":
        plane[height // 2 :, width // 3 :] = colours[1]
    elif fill == "one pixel":
        plane[random.integers(height), random.integers(width)] = colours[1]
    return plane


def as_image(values: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32) / 255)
    if mode == "I":
        return Image.fromarray(values[..., 0].astype(np.int32) * 257)
    return image.convert(mode)


def check(image: Any, size: tuple[int, int], name: str, *, may_refuse: bool = False) -> None:
    """The map has the size and the range, twice the same; or, where it may, the input is refused."""
    try:
        first = drawn(image, name)
    except ControlKitError as error:
        if not may_refuse or error.code == "CK-H24":  # that one is a failure inside of the detector
            raise
        return
    assert first.size == size
    assert first.mode == "RGB"
    assert first.tobytes() == drawn(image, name).tobytes()
    if name in BINARY:
        assert set(np.unique(np.asarray(first))) <= {0, 255}


PROPERTY = settings(
    deadline=None,
    max_examples=12,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
THOROUGH = settings(PROPERTY, max_examples=150)


def odd_picture(name: str, size: tuple[int, int], mode: str, fill: str, seed: int) -> None:
    check(as_image(filled(fill, *size, seed), mode), size, name)


def odd_array(name: str, size: tuple[int, int], kind: str, fill: str, seed: int, bad: float | None) -> None:
    unit = filled(fill, *size, seed) / 255
    scale = {"uint8": 255, "uint16": 65535, "int32": 255}.get(kind)
    values = (np.round(unit * scale) if scale else unit > 0.5 if kind == "bool" else unit).astype(kind)
    if bad is not None and kind.startswith("float"):
        values[0, 0, 0] = bad
    check(values[None], size, name, may_refuse=True)


DRAW = {"size": SIZES, "fill": st.sampled_from(FILLS), "seed": st.integers(0, 9)}
PICTURES = given(mode=st.sampled_from(MODES), **DRAW)
ARRAYS = given(
    kind=st.sampled_from(TYPES),
    bad=st.sampled_from([None, float("nan"), float("inf"), -0.5, 300.0]),
    **DRAW,
)


QUIET = pytest.mark.filterwarnings(
    "ignore::controlkit.errors.ControlKitWarning", "ignore::DeprecationWarning"
)


@pytest.mark.parametrize("name", DETECTORS)
@QUIET
@PROPERTY
@PICTURES
def test_odd_pictures(name: str, size: Any, mode: str, fill: str, seed: int) -> None:
    odd_picture(name, size, mode, fill, seed)


@pytest.mark.parametrize("name", DETECTORS)
@QUIET
@PROPERTY
@ARRAYS
def test_odd_arrays(name: str, size: Any, kind: str, fill: str, seed: int, bad: float | None) -> None:
    odd_array(name, size, kind, fill, seed, bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
@QUIET
@THOROUGH
@PICTURES
def test_many_odd_pictures(name: str, size: Any, mode: str, fill: str, seed: int) -> None:
    odd_picture(name, size, mode, fill, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
@QUIET
@THOROUGH
@ARRAYS
def test_many_odd_arrays(name: str, size: Any, kind: str, fill: str, seed: int, bad: float | None) -> None:
    odd_array(name, size, kind, fill, seed, bad)


@pytest.mark.parametrize("name", DETECTORS)
@QUIET
def test_every_size_of_one_pixel_and_every_mode(name: str) -> None:
    for size, modes in (((1, 1), MODES), ((1, 4096), MODES[::4]), ((4096, 1), MODES[2::4])):
        for mode in modes:
            check(as_image(filled("noise", *size, 1), mode), size, name)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("orientation", range(2, 9))
@QUIET
def test_exif_orientation_is_applied_once(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    source = photo("coffee", 48)
    source.save(file, "PNG", exif=exif)
    turned = Image.open(file)
    upright = ImageOps.exif_transpose(turned)
    assert upright is not None
    assert drawn(turned, name).tobytes() == drawn(Image.fromarray(np.asarray(upright)), name).tobytes()


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
@pytest.mark.filterwarnings("ignore:.*found nothing:controlkit.errors.ControlKitWarning")
def test_the_first_frame_of_an_animation_counts(name: str, kind: str) -> None:
    frames = [photo(title, 40).resize((60, 40)) for title in ("coffee", "cat")]
    file = io.BytesIO()
    lossless = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], **lossless)
    opened = Image.open(file)
    with pytest.warns(ControlKitWarning, match=r"first frame|first page|frames|pages"):
        found = drawn(opened, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found.tobytes() == drawn(Image.open(file).convert("RGB"), name).tobytes()
