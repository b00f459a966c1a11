"""For any size, type and layout: the same values in the right place, or a typed error; and a light import."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlkit.errors import ControlKitError, HintError
from controlkit.images import as_map, as_mask

SIDES = st.integers(1, 24)


@settings(deadline=None, max_examples=150)
@given(
    height=SIDES,
    width=SIDES,
    kind=st.sampled_from(["uint8", "uint16", "bool", "float16", "float32", "float64"]),
    layout=st.sampled_from(["HW", "HWC", "CHW", "NHWC", "NCHW"]),
    as_torch=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_layout_and_type_gives_the_same_picture(
    height: int, width: int, kind: str, layout: str, as_torch: bool, seed: int
) -> None:
    unit = np.random.default_rng(seed).integers(0, 256, (height, width, 3)) / 255
    if layout == "HW":
        unit[:] = unit[..., :1]
    scale = {"uint8": 255, "uint16": 65535}.get(kind)
    array = (
        np.round(unit * scale).astype(kind)
        if scale
        else (unit > 0.5 if kind == "bool" else unit.astype(kind))
    )
    wanted = array.astype(np.float64) / (scale or 1)
    shaped: Any = {
        "HW": array[..., 0],
        "HWC": array,
        "CHW": array.transpose(2, 0, 1),
        "NHWC": array[None],
        "NCHW": array.transpose(2, 0, 1)[None],
    }[layout]
    given_image = torch.from_numpy(np.ascontiguousarray(shaped)) if as_torch else shaped
    if 3 in (height, width):
        with suppress(HintError):
            as_map(given_image, any_aspect=True, notes=[])
    else:
        result = as_map(given_image, any_aspect=True, notes=[])
        assert isinstance(result, torch.Tensor)
        assert result.shape == (1, 3, height, width)
        np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), wanted, atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(
    shape=st.lists(st.integers(0, 7), min_size=0, max_size=5),
    kind=st.sampled_from(["uint8", "int32", "float32", "complex64", "bool", "float64"]),
    low=st.floats(-300, 300),
    high=st.floats(-300, 300),
)
def test_any_array_is_read_or_refused_by_a_typed_error(
    shape: list[int], kind: str, low: float, high: float
) -> None:
    array = np.linspace(low, high, int(np.prod(shape))).reshape(shape)
    with np.errstate(all="ignore"):
        array = np.asarray(np.nan_to_num(array)).astype(kind)
    for door in (as_map, as_mask):
        for image in (array, torch.from_numpy(array)):
            with suppress(ControlKitError):
                result = door(image, notes=[])
                assert isinstance(result, torch.Tensor)
                assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_importing_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, controlkit.images; "
        "heavy = ('torch', 'cv2', 'diffusers', 'transformers', 'skimage', 'scipy'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout.strip() == "[]"
