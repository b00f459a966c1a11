"""Running a detector: inputs of every kind, sizes, lists, empty results, wrong options."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.errors import ControlKitError, ControlKitWarning, HintError, MissingExtra, ParameterError
from controlkit.images import as_map
from controlkit.preprocessors import Detector, build, preprocess
from controlkit.preprocessors.canny import Canny

pytest.importorskip("cv2")

RGB = np.random.default_rng(8).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def single(image: Any, name: str = "canny", **options: Any) -> Image.Image:
    result = preprocess(image, name, **options)
    assert isinstance(result, Image.Image)
    return result


WANTED = single(Image.fromarray(RGB)).tobytes()


@pytest.mark.parametrize(
    "image",
    [RGB, RGB / 255, RGB.transpose(2, 0, 1), torch.from_numpy(RGB.copy()), torch.from_numpy(RGB / 255)],
)
def test_arrays_and_tensors_give_the_map_of_the_picture(image: Any) -> None:
    assert single(image).tobytes() == WANTED


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK", "I;16", "F", "LA"])
@pytest.mark.filterwarnings("ignore::controlkit.errors.ControlKitWarning")
def test_every_mode_gives_a_map_of_its_size(mode: str) -> None:
    image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RGB)
    result = single(image if mode == "I;16" else image.convert(mode))
    assert result.size == (40, 24)
    assert result.mode == "RGB"


def test_orientation_is_applied_before_looking() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(RGB).save(data, "PNG", exif=exif)
    result = single(Image.open(data), "invert")
    assert result.size == (24, 40)
    assert np.array_equal(np.asarray(result), 255 - np.rot90(RGB, -1))


def test_a_list_or_batch_gives_a_list() -> None:
    assert [one.size for one in preprocess([RGB, Image.new("RGB", (9, 5), "red")], "blur")] == [
        (40, 24),
        (9, 5),
    ]
    batch = preprocess(np.stack([RGB, RGB]), "canny")
    assert isinstance(batch, list)
    assert [one.tobytes() for one in batch] == [WANTED, WANTED]
    assert len(preprocess(torch.from_numpy(RGB[None].copy()), "canny")) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "wanted"), [((64, 48), (64, 48)), (48, (80, 48)), (24, (40, 24)), (None, (40, 24))]
)
def test_the_size_is_width_and_height_or_the_shortest_side(size: Any, wanted: tuple[int, int]) -> None:
    assert single(RGB, size=size).size == wanted


def test_the_picture_is_resized_before_it_is_looked_at() -> None:
    result = np.asarray(single(RGB, size=(80, 48)))
    assert set(np.unique(result)) == {0, 255}
    resized = Image.fromarray(RGB).resize((80, 48), Image.Resampling.LANCZOS)
    assert result.tobytes() == single(resized).tobytes()


@pytest.mark.parametrize("size", [0, -4, (4,) * 3, (8, 0), 2.5, "8x8", (8.0, 8)])
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ParameterError, match="size; found"):
        preprocess(RGB, "canny", size=size)


def test_enormous_sizes_are_refused() -> None:
    with pytest.raises(ControlKitError, match="at most 32 million"):
        preprocess(RGB, "canny", size=(10_000, 10_000))


@pytest.mark.parametrize("name", ["canny", "scribble", "lineart", "sobel"])
def test_an_empty_map_is_flagged(name: str) -> None:
    with pytest.warns(ControlKitWarning, match=f"{name} found nothing in image: the map is empty") as caught:
        result = single(Image.new("RGB", (64, 64), (90, 120, 30)), name)
    assert caught[0].filename == __file__
    assert result.info["controlkit"]["empty"]
    assert not np.asarray(result).any()


def test_the_empty_one_of_a_list_is_named() -> None:
    with pytest.warns(ControlKitWarning, match=r"canny found nothing in image\[1\]"):
        results = preprocess([RGB, np.zeros_like(RGB)], "canny")
    assert [one.info["controlkit"]["empty"] for one in results] == [False, True]


def test_a_map_carries_how_it_was_made() -> None:
    about = single(RGB, low_threshold=10).info["controlkit"]
    assert about == {
        "detector": "canny",
        "options": {"low_threshold": 10.0, "high_threshold": 200.0, "auto": False, "l2": False, "sigma": 0.0},
        "empty": False,
        "notes": [],
    }
    assert as_map(single(RGB)) is not None


def test_maps_can_be_saved() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        single(RGB).save(io.BytesIO(), kind)


def test_notes_about_the_input_reach_caller_and_map() -> None:
    clear = Image.fromarray(np.dstack([RGB, np.full(RGB.shape[:2], 200, np.uint8)]))
    with pytest.warns(ControlKitWarning, match="transparent pixels; laid on black"):
        result = preprocess(clear, "blur")
    assert "transparent" in result.info["controlkit"]["notes"][0]


WRONG: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "name": ("cany", {}, ("found 'cany'", "Did you mean canny")),
    "name, no match": ("zzz", {}, ("found 'zzz'", "canny, scribble")),
    "name, case": ("Canny", {}, ("Did you mean canny",)),
    "option": ("canny", {"low": 3}, ("option 'low'", "low_threshold")),
    "option, typo": ("canny", {"hihg_threshold": 3}, ("high_threshold",)),
    "option of one without": ("invert", {"x": 1}, ("no such option",)),
    "below": ("canny", {"low_threshold": -1}, ("found -1", "from 0 to 2040 gradient", "default is 100")),
    "above": ("blur", {"sigma": 1e6}, ("found 1000000.0", "0.1 to 100 pixels")),
    "NaN": ("blur", {"sigma": float("nan")}, ("found nan",)),
    "text": ("blur", {"sigma": "3"}, ("found '3'", "a number")),
    "bool as number": ("blur", {"sigma": True}, ("found True",)),
    "number as bool": ("canny", {"l2": 1}, ("True or False",)),
    "fraction": ("color", {"cell": 8.5}, ("found 8.5", "whole number")),
    "step": ("threshold", {"block": 10}, ("found 10", "in steps of 2")),
    "choice": ("scribble", {"method": "xdgo"}, ("'xdog', 'edges'", "Did you mean 'xdog'")),
    "order": ("canny", {"low_threshold": 300}, ("300, above high_threshold = 200", "Exchange")),
    "None": ("tile", {"factor": None}, ("found None",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_before_the_picture_is_read(case: str) -> None:
    name, options, texts = WRONG[case]
    no_picture: Any = None
    with pytest.raises(ParameterError) as caught:
        preprocess(no_picture, name, **options)
    for text in texts:
        assert text in str(caught.value), str(caught.value)


def test_numpy_numbers_and_whole_floats_are_fine() -> None:
    detector = build("color", cell=np.int64(8))
    assert detector == build("color", cell=8.0)
    assert type(vars(detector)["cell"]) is int


def test_a_detector_object_runs_too() -> None:
    assert preprocess(Image.fromarray(RGB), Canny()).tobytes() == WANTED
    with pytest.raises(ParameterError, match="none beside a detector object"):
        preprocess(RGB, Canny(), l2=True)


@pytest.mark.parametrize("image", [None, "photo.png", b"", [], np.full((4, 4), np.nan)])
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(HintError):
        preprocess(image, "canny")


@dataclass(frozen=True)
class Broken(Detector):
    name = "broken"
    family = "none"
    meaning = "nothing"

    def detect(self, photo: Any) -> Any:
        if photo.shape[0] == 24:
            raise RuntimeError("several\nlines")
        return photo[:1].astype(float)


def test_failures_of_a_detector_are_named_with_their_cause() -> None:
    with pytest.raises(ControlKitError, match=r"detector 'broken'.*RuntimeError: several lines") as caught:
        preprocess(RGB, Broken())
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ControlKitError, match=r"map of shape \(1, 40, 3\) and type float64"):
        preprocess(RGB[:20], Broken())


def test_a_missing_opencv_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match="pip install opencv-python-headless") as caught:
        preprocess(RGB, "canny")
    assert isinstance(caught.value, ImportError)
    assert preprocess(Image.fromarray(RGB), "invert").size == (40, 24)


def test_importing_and_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from controlkit.preprocessors import detectors; detectors(); "
        "heavy = ('torch', 'cv2', 'diffusers', 'transformers', 'controlnet_aux', 'mediapipe', 'timm'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.strip() == "[]"


def test_a_photograph_file_becomes_a_map_without_torch(tmp_path: Path) -> None:
    """So that a process that makes maps starts in half a second, not in four."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    code = (
        "import sys, controlkit as ck; from controlkit.batch import making; "
        f"map = ck.preprocess(ck.open_image({str(tmp_path / 'a.png')!r}), 'canny'); "
        "print(map.size, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.strip() == "(60, 40) False"


def test_the_source_folder_is_not_importable_by_its_bare_name() -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", "import preprocessors"], capture_output=True, text=True, check=False, cwd=root
    )
    assert "import controlkit.preprocessors, not preprocessors" in result.stderr


def test_opencv_decodes_no_files() -> None:
    root = Path(__file__).parents[2]
    sources = [*(root / "preprocessors").glob("*.py"), *(root / "controlkit" / "images").glob("*.py")]
    assert sources
    assert not [path.name for path in sources if re.search(r"imread|imdecode|VideoCapture", path.read_text())]
