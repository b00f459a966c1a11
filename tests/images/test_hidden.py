"""Hidden pixels of maps for inpainting: kept in files and recipes, read again by a control."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import controlkit as ck
from controlkit.binding import read_map
from controlkit.images import as_saved
from controlkit.images.hidden import KEYWORD, hidden_of
from controlkit.recipes.images import encode

HOLE = np.zeros((12, 16), bool)
HOLE[3:9, 4:12] = True
HOLE[5, 5] = False
PIXELS = np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8)


def rows(image: Any) -> torch.Tensor:
    """What a control reads."""
    read = read_map(
        image, detect=None, detect_options=None, channels=3, resize="stretch", channel_order=None
    ).rows
    assert isinstance(read, torch.Tensor)
    return read


@pytest.fixture(scope="module")
def made() -> Image.Image:
    return ck.preprocess(Image.fromarray(PIXELS), "inpaint", mask=HOLE)


@pytest.fixture
def file(made: Image.Image, tmp_path: Path) -> Path:
    """As the command line writes it."""
    picture, text = as_saved(made)
    about = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        about.add_itxt(keyword, value)
    picture.save(tmp_path / "map.png", pnginfo=about)
    return tmp_path / "map.png"


def test_a_file_is_read_as_the_map_was(made: Image.Image, file: Path) -> None:
    wanted = rows(made)
    assert (wanted == -1).all(1).sum() == HOLE.sum()
    opened = ck.open_image(file)
    assert torch.equal(rows(opened), wanted)
    with Image.open(file) as picture:
        assert torch.equal(rows(picture), wanted)
        assert torch.equal(rows(picture.convert("RGB")), wanted)
    assert torch.equal(rows([opened, made]), torch.cat([wanted, wanted]))


def test_other_programs_see_a_transparent_hole(file: Path) -> None:
    values = np.asarray(Image.open(file))
    assert values.shape == (12, 16, 4)
    assert np.array_equal(values[..., 3], np.where(HOLE, 0, 255))
    assert np.array_equal(values[..., :3], np.where(HOLE[..., None], 0, PIXELS))


def test_what_a_program_erases_is_hidden_too(file: Path) -> None:
    picture = ck.open_image(file)
    alpha = np.array(picture.getchannel("A"))
    alpha[0] = 0
    picture.putalpha(Image.fromarray(alpha))
    assert (rows(picture) == -1).all(1).sum() == HOLE.sum() + 16


def test_a_recipe_keeps_the_hole(made: Image.Image, file: Path) -> None:
    for image in (made, ck.open_image(file)):
        content = base64.b64decode(encode(image))
        assert torch.equal(rows(ck.open_image(io.BytesIO(content))), rows(made))


def test_maps_without_a_hole_are_saved_as_they_are() -> None:
    photo = Image.fromarray(PIXELS)
    assert as_saved(photo) == (photo, {})
    clear = photo.copy()
    clear.putalpha(0)
    assert hidden_of(clear) is None
    assert hidden_of(PIXELS) is None


def test_a_hole_that_does_not_fit_or_is_damaged_is_refused(made: Image.Image, file: Path) -> None:
    cropped = ck.open_image(file).convert("RGB").crop((0, 0, 8, 8))
    with pytest.raises(ck.HintError, match="its hidden part"):
        rows(cropped)
    with pytest.raises(ck.HintError, match="its hidden part"):
        as_saved(made.crop((0, 0, 8, 8)))
    assert rows(ck.open_image(file).crop((0, 0, 8, 8))).shape == (1, 3, 8, 8)
    for text in ("no base64!", base64.b64encode(b"no picture").decode()):
        broken = Image.fromarray(PIXELS)
        broken.info[KEYWORD] = text
        with pytest.raises(ck.HintError, match="damaged"):
            rows(broken)
