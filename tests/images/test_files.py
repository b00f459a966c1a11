"""Opening files: formats, damage, hostile sizes, names and orientation (faults H8 to H12 and H22)."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlkit.errors import ControlKitError, HintError, HintTooBig, UnsupportedImage
from controlkit.images import as_map, as_picture, open_image

PHOTO = np.kron(np.random.default_rng(2).integers(0, 256, (6, 9, 3)), np.ones((4, 4, 1))).astype(np.uint8)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}


def encoded(kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(PHOTO).save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_format_is_read_from_paths_and_open_files(kind: str, tmp_path: Path) -> None:
    data = encoded(kind, **LOSSLESS[kind])
    path = tmp_path / "named.wrongly"
    path.write_bytes(data)
    for source in (path, str(path), io.BytesIO(data)):
        assert np.array_equal(np.asarray(open_image(source).convert("RGB")), PHOTO)


def test_the_file_is_no_longer_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    image = open_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(image), PHOTO)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""How a picture is stored so that the orientation tag of that number brings it upright."""


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](PHOTO)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    stored.save(data, kind, exif=exif, **LOSSLESS.get(kind, {"quality": 100, "subsampling": 0}))
    opened = open_image(io.BytesIO(data.getvalue()))
    assert 0x0112 not in opened.getexif() or opened.getexif()[0x0112] == 1
    for result in (opened, as_picture(opened), as_picture(Image.open(data))):
        difference = np.abs(np.asarray(result.convert("RGB")).astype(int) - PHOTO)
        assert difference.max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_unreadable_exif_does_not_cost_the_picture() -> None:
    notes: list[str] = []
    image = Image.open(io.BytesIO(encoded("PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09")))
    assert np.array_equal(np.asarray(as_picture(image, notes=notes)), PHOTO)
    assert np.array_equal(np.asarray(as_picture(_broken_exif(), notes=notes)), PHOTO)


def _broken_exif() -> Image.Image:
    image = Image.fromarray(PHOTO)
    image.info["exif"] = b"Exif\0\0nonsense"
    return image


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    data = encoded(kind)
    whole = np.asarray(open_image(io.BytesIO(data)).convert("RGB"))
    codes: list[str] = []
    cuts = sorted(
        {*range(40), *range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 8, len(data))}
    )
    for cut in cuts:
        try:
            image = open_image(io.BytesIO(data[:cut]))
        except HintError as error:
            codes.append(error.code)
        else:
            assert np.array_equal(np.asarray(image.convert("RGB")), whole), f"cut at {cut} of {len(data)}"
    assert set(codes) <= {"CK-H10", "CK-H11", "CK-H12"}
    assert len(codes) >= 0.8 * len(cuts)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_never_raise_anything_else(kind: str) -> None:
    data, dice, codes = encoded(kind), random.Random(3), set[str]()
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 6)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            as_map(open_image(io.BytesIO(bytes(damaged)), notes=[]), any_aspect=True, notes=[])
        except ControlKitError as error:
            codes.add(error.code)
    assert all(code.startswith("CK-H") for code in codes)


def test_a_lazily_opened_cut_file_names_its_place_in_the_list() -> None:
    cut = Image.open(io.BytesIO(encoded("JPEG")[:-200]))
    with pytest.raises(HintError, match=r"^image\[1\]; found an image that cannot be decoded") as caught:
        as_map([PHOTO, cut])
    assert caught.value.code == "CK-H10"
    assert caught.value.__cause__ is not None


def test_a_closed_file_is_named() -> None:
    image = Image.open(io.BytesIO(encoded("PNG")))
    image.close()
    with pytest.raises(HintError, match="cannot be decoded"):
        as_map(image)


def huge_png(side: int) -> bytes:
    """A valid 1-bit PNG with side x side pixels in a few kilobytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pack = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    body = b"".join(pack.compress(row * 500) for _ in range(side // 500)) + pack.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


_MEASURE = """
import resource, sys, time, warnings
warnings.simplefilter("ignore")
from controlkit.errors import HintTooBig
from controlkit.images import as_map, open_image
from PIL import Image
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
for path in sys.argv[1:]:
    try:
        open_image(path)
    except HintTooBig as error:
        print(error.code)
try:
    as_map(Image.open(sys.argv[1]))
except HintTooBig as error:
    print(error.code)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by getrusage")
def test_enormous_headers_cost_no_memory(tmp_path: Path) -> None:
    paths = []
    for side in (12_000, 20_000):
        paths.append(tmp_path / f"{side}.png")
        paths[-1].write_bytes(huge_png(side))
        assert paths[-1].stat().st_size < 60_000
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout.split()
    assert result[:3] == ["CK-H11"] * 3
    assert int(result[3]) < 64 * 1024  # kilobytes
    assert float(result[4]) < 1.0


def test_the_limit_can_be_moved() -> None:
    with pytest.raises(HintTooBig, match=r"at most 0\.0005 million"):
        open_image(io.BytesIO(encoded("PNG")), max_pixels=500)


FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "SVG": b"  <svg xmlns='http://www.w3.org/2000/svg'/>",
    "PDF": b"%PDF-1.7\n",
    "Photoshop": b"8BPS\0\1" + bytes(40),
    "a web page": b"<!DOCTYPE html><html></html>",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "begins with": b"\x93NUMPY\x01\x00",
    "PPM": b"P6 2 2 255\n" + bytes(12),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedImage, match="needed PNG, JPEG") as caught:
        open_image(io.BytesIO(FOREIGN[kind]))
    assert caught.value.code == "CK-H12"
    assert kind in str(caught.value) or kind == "PPM"


def test_formats_pillow_knows_but_we_do_not_allow_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    from PIL import EpsImagePlugin

    def run_ghostscript(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run_ghostscript)
    with pytest.raises(UnsupportedImage):
        open_image(io.BytesIO(FOREIGN["PostScript"]))


NAMES = {
    "NUL": ("a\0b.png", "cannot be read"),
    "newline": ("a\nb.png", "no such file"),
    "parents": ("../../nowhere/at/all.png", "no such file"),
    "long": ("x" * 300 + ".png", "cannot be read"),
    "emoji": ("🐈.png", "no such file"),
    "empty": ("", "no such file"),
    "address": ("https://example.com/a.png", "an address"),
    "file address": ("file:///etc/passwd", "an address"),
}


@pytest.mark.parametrize("case", NAMES)
def test_odd_names_are_refused_in_one_line(case: str) -> None:
    name, text = NAMES[case]
    with pytest.raises(HintError, match=text) as caught:
        open_image(name)
    assert caught.value.code == "CK-H22"
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_devices_and_folders_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(HintError) as caught:
            open_image(path)
        assert caught.value.code == "CK-H22"
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("source", [b"\x89PNG", 7, None, io.StringIO("text")])
def test_things_that_are_no_files_are_refused(source: Any) -> None:
    with pytest.raises(HintError):
        open_image(source)


def test_an_empty_file_is_damaged() -> None:
    with pytest.raises(HintError, match="empty file"):
        open_image(io.BytesIO(b""))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_read_with_a_note(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    data = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(data, kind, save_all=True, append_images=frames[1:], **options)
    notes: list[str] = []
    image = open_image(data, notes=notes)
    assert image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    assert "several frames; frame 0" in notes[0]
    assert not getattr(image, "is_animated", False)


def test_sixteen_bits_survive_a_file() -> None:
    wide = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    data = io.BytesIO()
    Image.fromarray(wide).save(data, "PNG")
    result = as_map(open_image(data))
    assert not isinstance(result, list)
    np.testing.assert_allclose(result[0, 0].numpy(), wide / 65535, atol=1e-7)
