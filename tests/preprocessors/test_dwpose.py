"""DWPose on small ONNX networks with the published ones' inputs and outputs, written here byte by byte."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data

from controlkit.errors import (
    CheckpointCorrupt,
    ControlKitWarning,
    FileError,
    KindMismatch,
    NonFinite,
    ParameterError,
)
from controlkit.preprocessors import build, free, held, preprocess, wholebody
from controlkit.preprocessors.auxiliary import auxiliary

POSES, PERSONS = "dw-ll_ucoco_384.onnx", "yolox_l.onnx"
Arrays = dict[str, np.ndarray]
IMAGE = np.ascontiguousarray(data.astronaut()[:301, 90:347])


def number(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def entry(place: int, value: int | bytes | str) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return number(place << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(place << 3 | 2) + number(len(value)) + value


def node(kind: str, inputs: str, output: str, **attributes: Any) -> bytes:
    out = b"".join(entry(1, name) for name in inputs.split()) + entry(2, output) + entry(4, kind)
    for name, value in attributes.items():
        many = isinstance(value, (list, tuple))
        held = b"".join(entry(8, each) for each in value) if many else entry(3, value)
        out += entry(5, entry(1, name) + held + entry(20, 7 if many else 2))
    return out


def tensor(name: str, values: np.ndarray, outside: str = "") -> bytes:
    kind = 7 if values.dtype == np.int64 else 1
    out = b"".join(entry(1, n) for n in values.shape) + entry(2, kind) + entry(8, name)
    if not outside:
        return out + entry(9, values.tobytes())
    return out + entry(13, entry(1, "location") + entry(2, outside)) + entry(14, 1)


def place(name: str, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(entry(1, entry(1 if isinstance(n, int) else 2, n)) for n in shape)
    return entry(1, name) + entry(2, entry(1, entry(1, 1) + entry(2, dims)))


def model(
    nodes: list[bytes], held: Arrays, given: list[bytes], answers: list[bytes], outside: dict[str, str]
) -> bytes:
    graph = b"".join(entry(1, each) for each in nodes) + entry(2, "g")
    graph += b"".join(entry(5, tensor(name, values, outside.get(name, ""))) for name, values in held.items())
    graph += b"".join(entry(11, each) for each in given) + b"".join(entry(12, each) for each in answers)
    return entry(1, 8) + entry(7, graph) + entry(8, entry(1, "") + entry(2, 13))


def persons(bias: float = 0.0, scale: float = 1.0, outside: dict[str, str] | None = None) -> bytes:
    """Means of cells, weighted: a few of them are persons, of sizes of several cells."""
    random = np.random.default_rng(1)
    held: Arrays = {"shape": np.array([1, 85, -1])}
    nodes: list[bytes] = []
    for stride in (8, 16, 32):
        weight = random.normal(size=(85, 3, 1, 1)).astype(np.float32) * 0.004 * scale
        start = np.zeros(85, np.float32)
        start[2:4] = 2.0
        weight[4:6] *= 2
        start[4:6] = 0.4 + bias
        held |= {f"w{stride}": weight, f"b{stride}": start}
        nodes += [
            node("AveragePool", "images", f"p{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2),
            node("Conv", f"p{stride} w{stride} b{stride}", f"c{stride}"),
            node("Reshape", f"c{stride} shape", f"r{stride}"),
        ]
    nodes += [
        node("Concat", "r8 r16 r32", "all", axis=2),
        node("Transpose", "all", "output", perm=[0, 2, 1]),
    ]
    shapes = [place("images", (1, 3, 640, 640))], [place("output", (1, 8400, 85))]
    return model(nodes, held, *shapes, outside or {})


def poses(width: int = 288, scale: float = 1.0) -> bytes:
    random = np.random.default_rng(2)
    held: Arrays = {}
    nodes: list[bytes] = []
    for axis, window, bins in (("x", [384, 1], 2 * width), ("y", [1, width], 768)):
        weight = random.normal(size=(266, 3, 1, 1)).astype(np.float32) * 0.25 * scale
        held |= {f"w{axis}": weight, f"s{axis}": np.array([0, 133, bins])}
        nodes += [
            node("AveragePool", "input", f"p{axis}", kernel_shape=window),
            node("Conv", f"p{axis} w{axis}", f"c{axis}"),
            node("Reshape", f"c{axis} s{axis}", f"simcc_{axis}"),
        ]
    answers = [place("simcc_x", ("N", 133, 2 * width)), place("simcc_y", ("N", 133, 768))]
    return model(nodes, held, [place("input", ("N", 3, 384, width))], answers, {})


def write(folder: Path, first: bytes | None = None, second: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POSES).write_bytes(poses() if first is None else first)
    (folder / PERSONS).write_bytes(persons() if second is None else second)
    return folder


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    free()
    yield
    free()


def made(folder: Path, **options: Any) -> Any:
    return build("dwpose", weights=str(folder), device="cpu", **options)


def test_the_picture_is_what_controlnet_aux_draws_of_the_same_points(tmp_path: Path) -> None:
    detector = made(write(tmp_path))
    before = os.environ.get("KMP_DUPLICATE_LIB_OK")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = detector.detect(IMAGE)
    assert os.environ.get("KMP_DUPLICATE_LIB_OK") == before
    people = detector.people(IMAGE)
    assert len(people) > 1
    places, sure = np.array([each for each, _ in people]), np.array([each for _, each in people])
    assert 0 < (sure[:, :18] > 0.3).mean() < 1
    subset = np.where(sure[:, :18] > 0.3, np.arange(18 * len(people)).reshape(-1, 18), -1)
    body = places[:, :18].reshape(-1, 2).copy()
    places[sure < 0.3] = -1
    pose = {
        "bodies": {"candidate": body, "subset": subset},
        "hands": np.vstack([places[:, 92:113], places[:, 113:]]),
        "faces": places[:, 24:92],
    }
    expected = auxiliary("dwpose").draw_pose(pose, *IMAGE.shape[:2])
    assert np.array_equal(found, expected)
    assert found.std() > 2
    parts = [
        made(tmp_path, **{name: name == part for name in ("body", "hands", "face")}).detect(IMAGE)
        for part in ("body", "hands", "face")
    ]
    assert all(part.any() for part in parts)
    assert not np.array_equal(parts[0], parts[1])


def test_boxes_are_cells_and_strides_and_the_less_sure_goes() -> None:
    answer = np.zeros((1, 8400, 85), np.float32)
    rows = {0: (1, 0.9), 81: (0.5, 0.8), 6400 + 41: (1, 0.95), 8000 + 22: (2, 0.5), 8399: (1, 0.2)}
    for row, (size, sure) in rows.items():
        answer[0, row, 2:4] = size
        answer[0, row, 4:6] = 1, sure
    answer[0, 4000, 4], answer[0, 4000, 7] = 1, 1  # surely no person
    found = wholebody.persons(answer, 2.0, 0.3, 0.45)
    e, wide = np.exp(1) / 2, np.exp(2) / 2
    expected = [
        [8 - 8 * e, 8 - 8 * e, 8 + 8 * e, 8 + 8 * e],
        [-4 * e, -4 * e, 4 * e, 4 * e],
        [4 - 4 * np.exp(0.5) / 2, 4 - 4 * np.exp(0.5) / 2, 4 + 4 * np.exp(0.5) / 2, 4 + 4 * np.exp(0.5) / 2],
        [32 - 16 * wide, 16 - 16 * wide, 32 + 16 * wide, 16 + 16 * wide],
    ]
    assert np.allclose(found, expected, atol=1e-4)
    answer[0, 1] = answer[0, 0]
    answer[0, 1, 0], answer[0, 1, 5] = -1, 0.85  # the first cell's box again
    assert len(wholebody.persons(answer, 2.0, 0.3, 0.45)) == 4


def test_points_come_back_to_where_they_are_on_the_photograph() -> None:
    photo = np.zeros((400, 300, 3), np.uint8)
    photo[198:203, 118:123] = 255
    part, middle, size = wholebody.crop(photo, np.array([60.0, 100.0, 180.0, 300.0]))
    assert part.shape == (1, 3, 384, 288)
    assert size.tolist() == [187.5, 250.0]
    y, x = np.unravel_index(part[0, 1].argmax(), (384, 288))
    across, down = np.zeros((1, 133, 576), np.float32), np.zeros((1, 133, 768), np.float32)
    across[..., 2 * x], down[..., 2 * y] = 0.8, 0.4
    places, sure = wholebody.points(across, down, middle, size)
    assert np.abs(places - 120 - np.array([0, 80])).max() < 4
    assert np.allclose(sure, 0.6)


def test_the_neck_is_seen_where_both_shoulders_are() -> None:
    places, sure = np.arange(266.0).reshape(133, 2), np.full(133, 0.5)
    ordered, seen = wholebody.in_order(places, sure, 0.3)
    coco = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, *range(17, 133)]
    assert [None if i == 1 else int(x) // 2 for i, (x, _) in enumerate(ordered)] == coco
    assert ordered[1].tolist() == [11, 12]
    assert seen[1] == 1
    sure[6] = 0.3
    assert wholebody.in_order(places, sure, 0.3)[1][1] == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (37, 91), (640, 640)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    detector = made(write(tmp_path), person=0.9)
    found = detector.detect(image)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    assert np.array_equal(found, detector.detect(image))


def test_nobody_found_is_an_empty_map_and_told(tmp_path: Path) -> None:
    folder = write(tmp_path, second=persons(bias=-0.4, scale=0.0))
    with pytest.warns(ControlKitWarning, match="dwpose found nothing"):
        found = preprocess(IMAGE, "dwpose", weights=str(folder), device="cpu")
    assert not np.asarray(found).any()


def test_a_folder_or_a_file_with_the_network_closed_held_and_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    folder = write(tmp_path)
    (folder / "mine.onnx").write_bytes(poses())
    monkeypatch.setattr(socket, "socket", closed)
    one, other = made(folder).detect(IMAGE), made(folder / "mine.onnx").detect(IMAGE)
    assert np.array_equal(one, other)
    assert held() == 2
    assert free() == 2


FAULTS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "cut": (lambda: poses()[:2000], None, CheckpointCorrupt, "onnxruntime refuses"),
    "a page": (lambda: b"<html>", None, CheckpointCorrupt, "onnxruntime refuses"),
    "empty": (None, lambda: b"", CheckpointCorrupt, "onnxruntime refuses"),
    "another size": (lambda: poses(192), None, KindMismatch, "192"),
    "exchanged": (persons, poses, KindMismatch, "640"),
    "not finite": (None, lambda: persons(bias=float("nan")), NonFinite, "no finite answer"),
    "elsewhere": (None, lambda: persons(outside={"w8": "w8.bin"}), CheckpointCorrupt, "one file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, error, words = FAULTS[fault]
    folder = write(tmp_path / "there", first and first(), second and second())
    for near in (folder, tmp_path):  # what the file names is there, and must not be read
        (near / "w8.bin").write_bytes(bytes(4 * 85 * 3))
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=words):
        made(folder).detect(IMAGE)
    assert held() == (fault == "not finite")


def test_weights_outside_are_not_read_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * 85 * 3))
    folder = tmp_path / "there"
    monkeypatch.chdir(tmp_path)
    for name in (str(secret), "../secret.bin", "secret.bin", f"../../../../..{secret}"):
        write(folder, second=persons(outside={"w8": name}))
        with pytest.raises(CheckpointCorrupt):
            made(folder).detect(IMAGE)


def test_missing_files_and_wrong_options(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / PERSONS).unlink()
    with pytest.raises(FileError, match=PERSONS):
        made(folder).detect(IMAGE)
    with pytest.raises(ParameterError, match="nothing to draw"):
        made(folder, body=False, hands=False, face=False)
    with pytest.raises(ParameterError, match="half"):
        made(folder, half=True)
