"""Pictures that cannot be used: refused with what was found, what was needed and what to do (H1 to H21)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.errors import DeviceMismatch, HintError, HintTooBig
from controlkit.images import as_map

RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
FLOAT = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(2))


REFUSED: dict[str, tuple[Callable[[], Any], str, tuple[str, ...]]] = {
    "H1 no rows": (lambda: np.zeros((0, 4, 3), np.uint8), "CK-H1", ("4 x 0", "at least one pixel")),
    "H1 no columns": (lambda: torch.zeros(1, 3, 4, 0), "CK-H1", ("0 x 4",)),
    "H1 PIL": (lambda: Image.new("RGB", (0, 5)), "CK-H1", ("0 x 5",)),
    "H1 gray": (lambda: np.zeros((0, 0)), "CK-H1", ("0 x 0",)),
    "H2 aspect": (lambda: Image.new("RGB", (1, 4096)), "CK-H2", ("4096:1", "16:1", "any_aspect")),
    "H3 negative I": (lambda: Image.new("I", (2, 2), -5), "CK-H3", ("mode I", "-5", "[0, 1]")),
    "H3 large F": (lambda: Image.new("F", (2, 2), 1e6), "CK-H3", ("mode F", "1e+06")),
    "H13 NaN in F": (lambda: Image.new("F", (2, 2), float("nan")), "CK-H13", ("4 NaN", "row 0, column 0")),
    "H13 one NaN": (lambda: _with(FLOAT, (1, 2, 3, 4), float("nan")), "CK-H13", ("1 NaN", "(1, 2, 3, 4)")),
    "H13 inf": (lambda: _with(FLOAT[0, 0], (5, 8), float("inf")).numpy(), "CK-H13", ("(5, 8)", "nan_to_num")),
    "H13 huge float64": (lambda: np.full((2, 2), 1e300), "CK-H14", ("1e+300",)),
    "H14 0..255": (lambda: FLOAT * 255, "CK-H14", ("0..255", "[0, 1]", "Divide by 255")),
    "H14 -1..1": (lambda: FLOAT * 2 - 1, "CK-H14", ("-1..1", "(x + 1) / 2")),
    "H14 0..65535": (lambda: FLOAT.double().numpy() * 65535, "CK-H14", ("0..65535", "uint16")),
    "H14 normalised": (lambda: (FLOAT - 0.5) / 0.2, "CK-H14", ("mean and deviation",)),
    "H14 -0.02": (lambda: FLOAT - 0.02 - FLOAT.min(), "CK-H14", ("-0.02",)),
    "H14 1.6": (lambda: FLOAT / FLOAT.max() * 1.6, "CK-H14", ("1.6",)),
    "H16 both readings": (lambda: np.zeros((3, 5, 3)), "CK-H16", ("(3, 5, 3)", "(C, H, W)", "(H, W, C)")),
    "H16 no reading": (lambda: np.zeros((32, 33, 34)), "CK-H16", ("(32, 33, 34)", "3 channels")),
    "H16 1-D": (lambda: np.zeros(5), "CK-H16", ("(5,)", "1 axes")),
    "H16 5-D": (lambda: torch.zeros(1, 1, 3, 4, 4), "CK-H16", ("(1, 1, 3, 4, 4)",)),
    "H17 one": (lambda: torch.zeros(1, 1, 8, 8), "CK-H17", ("1 channel ", "3 channels", "(H, W)")),
    "H17 two": (lambda: np.zeros((8, 8, 2)), "CK-H17", ("2 channels", "(8, 8, 2)", "(H, W, C)")),
    "H17 four": (lambda: torch.zeros(1, 4, 8, 8), "CK-H17", ("4 channels", "alpha", "PIL")),
    "H17 five": (lambda: torch.zeros(5, 8, 8), "CK-H17", ("5 channels", "(C, H, W)")),
    "H20 empty list": (list, "CK-H20", ("empty list", "one picture per prompt")),
    "H20 empty batch": (lambda: np.zeros((0, 4, 4, 3)), "CK-H20", ("empty batch",)),
    "H20 None": (lambda: None, "CK-H20", ("None",)),
    "H20 str": (lambda: "edges.png", "CK-H20", ("'edges.png'", "ck.open_image", "never fetched")),
    "H20 path": (lambda: Path("edges.png"), "CK-H20", ("edges.png", "ck.open_image")),
    "H20 bytes": (lambda: b"\x89PNG", "CK-H20", ("4 raw bytes", "BytesIO")),
    "H20 generator": (lambda: (x for x in [RGB]), "CK-H20", ("generator", "list(")),
    "H20 dict": (lambda: {"image": RGB}, "CK-H20", ("dict",)),
    "H20 nested": (lambda: [[RGB]], "CK-H20", ("image[0]", "nested list")),
    "H20 None in list": (lambda: [RGB, None], "CK-H20", ("image[1]", "None")),
    "H20 batch in list": (
        lambda: [FLOAT, FLOAT],
        "CK-H20",
        ("image[0]", "2 pictures", "one picture per entry"),
    ),
    "H20 class": (lambda: Image.Image, "CK-H20", ("the class Image",)),
    "H21 complex": (lambda: np.zeros((4, 4), complex), "CK-H21", ("complex128", "uint8")),
    "H21 int64": (lambda: np.zeros((4, 4), int), "CK-H21", ("int64", "uint8 for 0..255")),
    "H21 int32 tensor": (lambda: torch.zeros(4, 4).int(), "CK-H21", ("int32",)),
    "H21 object": (lambda: np.array([[None]]), "CK-H21", ("object",)),
    "H21 text": (lambda: np.array([["a"]]), "CK-H21", ("<U1",)),
    "H21 sparse": (lambda: torch.zeros(3, 4, 4).to_sparse(), "CK-H21", ("sparse", "to_dense")),
    "H21 masked": (lambda: np.ma.masked_less(np.zeros((4, 4)), 1), "CK-H21", ("masked", "filled")),
}


def _with(tensor: torch.Tensor, index: tuple[int, ...], value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_was_found_and_what_to_do(case: str) -> None:
    given, code, texts = REFUSED[case]
    with pytest.raises(HintError) as caught:
        as_map(given(), notes=[])
    assert caught.value.code == code
    assert str(caught.value).startswith("image")
    assert caught.value.found
    assert caught.value.fix
    assert len(str(caught.value)) <= 600
    for text in texts:
        assert text in str(caught.value), str(caught.value)


def test_errors_use_the_callers_name_for_the_argument() -> None:
    with pytest.raises(HintError, match=r"^canny: image\[1\]; found None"):
        as_map([RGB, None], what="canny: image")


def test_meta_tensors_are_refused_as_a_device_fault() -> None:
    with pytest.raises(DeviceMismatch, match="meta"):
        as_map(torch.zeros(1, 3, 8, 8, device="meta"))


def test_many_pixels_are_refused_before_they_are_read() -> None:
    with pytest.raises(HintTooBig, match="at most 32 million") as caught:
        as_map(np.broadcast_to(np.uint8(0), (6000, 6000, 3)))
    assert caught.value.code == "CK-H11"
