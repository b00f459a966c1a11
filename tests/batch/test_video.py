"""Maps of a video: every frame, at its size and time."""

from __future__ import annotations

import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.batch import preprocess_video

av: Any = import_module("av")
FRAMES, SIDE = 9, (96, 64)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A square that moves to the right."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=12)
        stream.width, stream.height = SIDE
        stream.pix_fmt = "bgr0"
        for number in range(FRAMES):
            picture = np.zeros((SIDE[1], SIDE[0], 3), np.uint8)
            picture[20:44, 6 * number : 6 * number + 24] = (200, 60, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def frames(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_frames_become_exact_maps(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    assert preprocess_video(clip, "canny", out) == FRAMES
    files = sorted(out.glob("*.png"))
    assert len(files) == FRAMES
    for file, frame in zip(files, frames(clip), strict=True):
        expected = ck.preprocess(Image.fromarray(frame), "canny")
        with Image.open(file) as found:
            assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(expected))


def test_a_video_keeps_size_and_rate(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps.mp4"
    assert preprocess_video(clip, "canny", out) == FRAMES
    with av.open(str(out)) as container:
        (stream,) = container.streams.video
        assert (stream.width, stream.height) == SIDE
        assert float(stream.average_rate) == pytest.approx(12, rel=1e-3)  # Matroska has milliseconds
    made = frames(out)
    assert len(made) == FRAMES
    for frame, drawn in zip(frames(clip), made, strict=True):
        expected = np.asarray(ck.preprocess(Image.fromarray(frame), "canny"))
        assert float(np.abs(drawn.astype(float) - expected).mean()) < 6  # H.264


def test_frames_are_turned_as_the_video_says(tmp_path: Path) -> None:
    upright = tmp_path / "upright.mp4"
    with av.open(str(upright), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = SIDE
        picture = np.full((SIDE[1], SIDE[0], 3), 30, np.uint8)
        picture[:16, :16] = 220  # the upper left corner
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = upright.read_bytes()
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, SIDE[1] << 16, 0, 1 << 30)
    track = content.rindex(straight)  # the file's own matrix comes first
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content[:track] + clockwise + content[track + len(clockwise) :])
    (stored,) = frames(turned)
    assert preprocess_video(turned, "invert", tmp_path / "maps") == 1
    with Image.open(tmp_path / "maps" / "000000.png") as found:
        seen = 255 - np.asarray(found.convert("RGB")).astype(int)
    assert np.array_equal(seen, np.rot90(stored, -1))
    assert seen[:16, -16:].mean() > 200, "the corner is at the upper right"


def test_something_else_than_a_video_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    with pytest.raises(ck.ControlKitError, match=r"bad\.mp4"):
        preprocess_video(bad, "canny", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
