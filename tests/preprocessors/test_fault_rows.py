"""Rows H1 to H24 of the fault table, where a picture goes through a detector: by itself, and in ``on``."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import controlkit as ck
from controlkit.errors import ControlKitError, ControlKitWarning, HintError, HintTooBig, UnsupportedImage
from tests.images.test_door import ACCEPTED, RGB
from tests.images.test_refused import REFUSED
from tests.tiny import controlnet

NET = controlnet()
PHOTO = Image.fromarray(data.astronaut()).resize((48, 32))


def by_itself(image: Any) -> torch.Tensor:
    made = ck.preprocess(image, "invert")
    several = made if isinstance(made, list) else [made]
    return torch.from_numpy(np.stack([np.array(one) for one in several])).permute(0, 3, 1, 2).float() / 255


def in_on(image: Any) -> torch.Tensor:
    control: Any = NET.on(image, detect="invert")
    rows = control.map.rows
    return rows if isinstance(rows, torch.Tensor) else torch.cat(rows)


WAYS = {"preprocess": by_itself, "on": in_on}
ways = pytest.mark.parametrize("way", WAYS)


@ways
@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_read_is_what_the_detector_sees(case: str, way: str) -> None:
    given, wanted = ACCEPTED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ControlKitWarning)
        seen = 1 - WAYS[way](given())
    assert seen.shape == wanted().shape
    torch.testing.assert_close(seen, wanted().float(), rtol=0, atol=0.501 / 255)


@ways
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_before_detecting(case: str, way: str) -> None:
    given, code, texts = REFUSED[case]
    with pytest.raises(HintError) as caught:
        WAYS[way](given())
    assert caught.value.code == code
    for text in texts:
        assert text in str(caught.value)


def _turned(orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    PHOTO.save(buffer, "PNG", exif=exif)
    return Image.open(io.BytesIO(buffer.getvalue()))


@ways
@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_is_applied_once(orientation: int, way: str) -> None:
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a),
    }
    turn: Callable[[np.ndarray], np.ndarray] = turns[orientation]
    wanted = turn(255 - np.asarray(PHOTO)).transpose(2, 0, 1)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ControlKitWarning)
        seen = WAYS[way](_turned(orientation))
    assert np.array_equal((seen * 255).round().byte().numpy(), wanted)


@ways
def test_alpha_lies_on_the_documented_background(way: str) -> None:
    clear = Image.fromarray(np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        seen = WAYS[way](clear)
    flat = ck.images.as_map(clear, notes=[])
    torch.testing.assert_close(1 - seen, flat, rtol=0, atol=1e-6)
    assert len(torch.unique(flat)) == 1, "what is hidden does not show"
    assert any("alpha" in str(one.message) or "transparen" in str(one.message) for one in told)


def _files(folder: Path) -> dict[str, tuple[Path, type[ControlKitError]]]:
    """Name → file, error of opening it."""
    buffer = io.BytesIO()
    PHOTO.save(buffer, "JPEG")
    cut = folder / "cut.jpg"
    cut.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    vector = folder / "vector.svg"
    vector.write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    large = folder / "large.png"
    Image.new("1", (12000, 12000)).save(large)
    return {
        "H10": (cut, HintError),
        "H11": (large, HintTooBig),
        "H12": (vector, UnsupportedImage),
    }


@ways
@pytest.mark.parametrize("row", ["H10", "H11", "H12"])
def test_files_that_cannot_be_used(row: str, way: str, tmp_path: Path) -> None:
    path, kind = _files(tmp_path)[row]
    with pytest.raises(kind):
        WAYS[way](ck.open_image(path))


@ways
def test_of_an_animation_the_first_frame_is_taken(way: str) -> None:
    buffer = io.BytesIO()
    first, second = Image.new("RGB", (48, 32), "red"), Image.new("RGB", (48, 32), "blue")
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    with pytest.warns(ControlKitWarning, match="frame"):
        seen = WAYS[way](Image.open(io.BytesIO(buffer.getvalue())))
    assert torch.equal(1 - seen, torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 32, 48))


@ways
def test_nothing_found_is_told(way: str) -> None:
    flat = Image.new("RGB", (64, 64), (90, 90, 90))
    detecting = {
        "preprocess": lambda: ck.preprocess(flat, "canny"),
        "on": lambda: NET.on(flat, detect="canny"),
    }
    with pytest.warns(ControlKitWarning, match="found nothing"):
        detecting[way]()
