"""MediaPipe's faces, with a stand-in for its network: which are drawn, where, and in which colours."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controlkit.errors import ControlKitWarning, ParameterError
from controlkit.preprocessors import build, mediapipe_face, preprocess

FACES = {
    "large": ((0.1, 0.1), (0.9, 0.9)),
    "63 pixels": ((0.1, 0.1), (0.1 + 63 / 128, 0.9)),
    "at the edge of being drawn": ((0.25, 0.25), (0.75, 0.75)),
}


def stand_in(monkeypatch: pytest.MonkeyPatch, faces: tuple[str, ...]) -> dict[str, Any]:
    """As if mediapipe were there, and found these faces; what it was asked with."""
    asked: dict[str, Any] = {}

    class FaceMesh:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def __enter__(self) -> FaceMesh:
            return self

        def __exit__(self, *_: object) -> None:
            asked["closed"] = True

        def process(self, image: np.ndarray) -> Any:
            assert image.flags.c_contiguous
            found = [
                SimpleNamespace(landmark=[SimpleNamespace(x=x, y=y) for x, y in FACES[name]])
                for name in faces
            ]
            return SimpleNamespace(multi_face_landmarks=found[: asked["max_num_faces"]] or None)

    def draw(image: np.ndarray, face: Any, **_: Any) -> None:
        image[:] = (10, 20, 30)

    def pupils(image: np.ndarray, face: Any, *_: Any) -> None:
        image[0, 0] = (1, 2, 3)

    common = SimpleNamespace(
        mp_face_mesh=SimpleNamespace(FaceMesh=FaceMesh),
        mp_drawing=SimpleNamespace(draw_landmarks=draw),
        draw_pupils=pupils,
        face_connection_spec={},
        iris_landmark_spec={},
    )
    monkeypatch.setitem(sys.modules, "mediapipe", SimpleNamespace(solutions=None))
    monkeypatch.setattr(mediapipe_face, "auxiliary", lambda _: common)
    return asked


@pytest.mark.parametrize(
    ("faces", "drawn"),
    [((), False), (("large",), True), (("63 pixels",), False), (("at the edge of being drawn",), True)],
)
def test_faces_from_64_pixels_are_drawn_in_rgb(
    faces: tuple[str, ...], drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(monkeypatch, faces)
    found = build("mediapipe-face", max_faces=3, min_confidence=0.4).detect(np.zeros((128, 128, 3), np.uint8))
    assert found.shape == (128, 128, 3)
    assert asked["max_num_faces"] == 3
    assert asked["min_detection_confidence"] == 0.4
    assert asked["static_image_mode"]
    assert asked["refine_landmarks"]
    assert asked["closed"]
    assert (found[5, 5].tolist() == [30, 20, 10]) is drawn
    assert (found[0, 0].tolist() == [3, 2, 1]) is drawn


def test_no_face_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, ())
    with pytest.warns(ControlKitWarning, match="mediapipe-face found nothing"):
        found = preprocess(np.zeros((70, 40, 3), np.uint8), "mediapipe-face")
    assert found.size == (40, 70)
    with pytest.raises(ParameterError, match="max_faces"):
        build("mediapipe-face", max_faces=0)
