"""Faces by MediaPipe: outlines of face, brows, eyes, mouth and pupils."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from controlkit.errors import MissingExtra
from controlkit.preprocessors.auxiliary import REQUIREMENT, auxiliary, quiet
from controlkit.preprocessors.base import Detector, Pixels, option

_EXTRA = f"{REQUIREMENT} mediapipe"
_SMALLEST = 64
"""Pixels. Faces that are smaller are left out, as in the maps that models were trained on."""


@dataclass(frozen=True)
class MediaPipeFace(Detector):
    """Faces with their expression and gaze, for ControlNets of MediaPipe faces.

    Needs faces of at least 64 pixels, from the front or half from the side. The network comes with the
    package ``mediapipe``, in those of its versions that still have ``mediapipe.solutions``.

    Source:
        Kartynnik et al. (2019), "Real-time facial surface geometry from monocular video on mobile GPUs",
        CVPR workshops; controlnet-aux ``MediapipeFaceDetector``.
    """

    name = "mediapipe-face"
    family = "face"
    meaning = "coloured outlines of faces, on black"
    needs_weights = True
    extra = _EXTRA
    marks = True

    max_faces: int = option(1, low=1, high=100, unit="faces", meaning="at most so many, the surest first")
    min_confidence: float = option(0.5, low=0, high=1, meaning="how sure it must be of a face")

    def detect(self, photo: Pixels) -> Pixels:
        common = _common()
        height, width = photo.shape[:2]
        with (
            quiet(),
            common.mp_face_mesh.FaceMesh(
                static_image_mode=True,
                max_num_faces=self.max_faces,
                refine_landmarks=True,
                min_detection_confidence=self.min_confidence,
            ) as network,
        ):
            found = network.process(np.ascontiguousarray(photo)).multi_face_landmarks or []
        drawn = np.zeros_like(photo)
        for face in found:
            places = np.array([(point.x * width, point.y * height) for point in face.landmark])
            if np.ptp(places, axis=0).min() < _SMALLEST:
                continue
            common.mp_drawing.draw_landmarks(
                drawn,
                face,
                connections=common.face_connection_spec.keys(),
                landmark_drawing_spec=None,
                connection_drawing_spec=common.face_connection_spec,
            )
            common.draw_pupils(drawn, face, common.iris_landmark_spec, 2)
        return np.ascontiguousarray(drawn[..., ::-1])


def _common() -> Any:
    """controlnet-aux's way of drawing faces, which needs mediapipe as it was."""
    cause: Exception | None = None
    try:
        with quiet():
            import mediapipe  # pyright: ignore[reportMissingImports]

            there = hasattr(mediapipe, "solutions")
    except Exception as error:  # its native parts may fail in any way
        there, cause = False, error
    if not there:
        raise MissingExtra(
            "this detector needs mediapipe",
            found=f"{type(cause).__name__}: {cause}"[:200]
            if cause
            else "a version without mediapipe.solutions",
            expected="mediapipe with its older interface, such as 0.10.14",
            fix=f"Run: pip install {_EXTRA}" if cause else "Run: pip install mediapipe==0.10.14",
        )
    return auxiliary("mediapipe_face.mediapipe_face_common")
