"""How often `check_map` is right: 200 right maps and 200 wrong ones, of pictures that chose no threshold."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image

from controlkit.maps import MapCheck, check_map
from tests.maps.cases import Case, right, wrong
from tests.maps.pictures import FOLDER, HELD_OUT, TUNING


def test_no_photograph_that_chose_thresholds_is_measured() -> None:
    assert len(HELD_OUT) == 8
    assert not set(TUNING) & set(HELD_OUT)
    assert all((FOLDER / name).exists() for name in (*TUNING, *HELD_OUT))


@cache
def checks(of: Callable[[], list[Case]]) -> list[tuple[MapCheck, str]]:
    """What is found of each, and what is so."""
    return [(check_map(picture, name), fault) for picture, name, fault in of()]


def test_right_maps_are_believed() -> None:
    assert len(checks(right)) == 200
    doubted = [(number, str(check)) for number, (check, _) in enumerate(checks(right)) if not check.ok]
    assert len(doubted) <= 4, doubted


def test_wrong_maps_are_named() -> None:
    assert len(checks(wrong)) == 200
    kinds = Counter(fault for _, fault in checks(wrong))
    assert set(kinds) == {"photograph", "inverted", "near dark", "palette", "blank", "another kind"}
    missed = [
        (number, fault, check.fault, str(check))
        for number, (check, fault) in enumerate(checks(wrong))
        if check.fault != fault
    ]
    assert len(missed) <= 10, missed
    for fault, count in Counter(fault for _, fault, *_ in missed).items():
        assert count <= 0.2 * kinds[fault], (fault, missed)


def test_what_it_is_sure_of_is_so() -> None:
    found = [*checks(right), *checks(wrong)]
    assert all(0.5 <= check.sure <= 1.0 for check, _ in found)
    sure = [check.fault == fault for check, fault in found if check.sure >= 0.9]
    assert len(sure) >= 200
    assert np.mean(sure) >= 0.98


def _jpeg(picture: Image.Image) -> Image.Image:
    saved = io.BytesIO()
    picture.save(saved, "JPEG", quality=80)
    return Image.open(saved).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": _jpeg,
    "smaller": lambda p: p.resize((p.width * 2 // 3, p.height * 2 // 3), Image.Resampling.LANCZOS),
    "larger": lambda p: p.resize((p.width * 3 // 2, p.height * 3 // 2), Image.Resampling.BILINEAR),
}


@pytest.mark.parametrize("change", CHANGES)
def test_right_maps_are_believed_as_jpeg_and_resized(change: str) -> None:
    cases = [(picture, name) for picture, name, _ in right() if name != "color"][::2]
    found = [check_map(CHANGES[change](picture), name) for picture, name in cases]
    assert len(found) >= 90
    assert sum(not check.ok for check in found) <= 2, [str(check) for check in found if not check.ok]


def test_it_takes_milliseconds() -> None:
    picture = right()[0][0].resize((768, 768))
    check_map(picture, "canny")
    begin = time.process_time()
    for _ in range(5):
        check_map(picture, "canny")
    assert (time.process_time() - begin) / 5 < 0.25
