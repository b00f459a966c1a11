"""Poses by DWPose: bodies, hands and faces of each person that is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from controlkit.errors import CheckpointCorrupt, ParameterError
from controlkit.extras import needed
from controlkit.preprocessors import wholebody
from controlkit.preprocessors.auxiliary import auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.networks import Networked
from controlkit.preprocessors.onnxfiles import REQUIREMENT, run, session
from controlkit.preprocessors.weightfiles import files_of, local_files

if TYPE_CHECKING:
    import torch

POSES, PERSONS = "dw-ll_ucoco_384.onnx", "yolox_l.onnx"
_SQUARE = (1, 3, wholebody.SIDE, wholebody.SIDE)
_ROWS = (1, wholebody.CELLS, 85)
_PART = (None, 3, wholebody.CROP[1], wholebody.CROP[0])
_ACROSS, _DOWN = ((None, wholebody.POINTS, side * wholebody.SPLIT) for side in wholebody.CROP)
_FACE, _HANDS = slice(24, 92), (slice(92, 113), slice(113, 134))
_FAR = 4


class Both(NamedTuple):
    """Sessions of the two networks."""

    poses: Any
    persons: Any


@dataclass(frozen=True)
class DwPose(Networked):
    """Skeletons, hands and faces of all persons, on black, for ``openpose`` models.

    More exact than ``openpose``, above all in hands. Persons are found first; one that is not found is not
    drawn. The two networks are the published ONNX files, which onnxruntime runs: mmcv, mmdet and mmpose are
    not needed. ``device="cuda"`` needs ``onnxruntime-gpu``; without it ``auto`` is the CPU. The drawing is
    controlnet-aux's, at the photograph's size.

    Source:
        Yang et al. (2023), "Effective whole-body pose estimation with two-stages distillation", ICCV
        workshops; IDEA-Research/DWPose, its ONNX branch; controlnet-aux ``dwpose.util``.
    """

    name = "dwpose"
    family = "openpose"
    meaning = "coloured skeletons, hands and faces on black"
    marks = True
    extra = f"controlkit[detectors] {REQUIREMENT}"

    weights: str = option(
        "yzd-v/DWPose", meaning="a hub id, a folder, or the file of poses beside that of persons"
    )
    half: bool = option(False, meaning="not for this one: it computes in what its files say")
    person: float = option(0.3, low=0, high=1, meaning="how sure it must be of a person")
    overlap: float = option(
        0.45, low=0, high=1, meaning="the share that two persons' boxes may have in common"
    )
    joint: float = option(0.3, low=0, high=1, meaning="how sure it must be of a point")
    body: bool = option(True, meaning="draw bodies")
    hands: bool = option(True, meaning="draw hands")
    face: bool = option(True, meaning="draw faces")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.body or self.hands or self.face):
            raise ParameterError(
                f"{self.name}: body, hands, face",
                found="nothing to draw",
                expected="at least one of them",
                fix="Give body=True.",
            )
        if self.half:
            raise ParameterError(
                f"{self.name}: half",
                found="True",
                expected="False",
                fix="ONNX files say themselves in what they compute.",
            )

    def variant(self) -> tuple[str, ...]:
        paths = local_files(self.weights, (POSES, PERSONS)) or ()
        told = [path.stat() for path in paths if path.is_file()]
        return tuple(f"{each.st_size} {each.st_mtime_ns} {each.st_ino}" for each in told)

    def read(self, device: torch.device) -> Both:
        needed("onnxruntime", "this detector needs onnxruntime", REQUIREMENT)
        poses, persons = files_of(
            self.name,
            self.weights,
            (POSES, PERSONS),
            revision=self.revision,
            local_files_only=self.local_files_only,
        )
        return Both(
            session(
                poses,
                device,
                self.name,
                given={"input": _PART},
                answers={"simcc_x": _ACROSS, "simcc_y": _DOWN},
            ),
            session(persons, device, self.name, given={"images": _SQUARE}, answers={"output": _ROWS}),
        )

    def detect(self, photo: Pixels) -> Pixels:
        drawing = auxiliary("dwpose.util")
        if self.hands:
            needed("matplotlib", "drawing hands needs Matplotlib", self.extra)
        found = self.people(photo)
        canvas = np.zeros(photo.shape, np.uint8)
        if self.body:
            joints = [places[:18] for places, _ in found]
            numbers = np.arange(18 * len(found)).reshape(-1, 18)
            sure = np.array([each[:18] for _, each in found]).reshape(-1, 18) > self.joint
            together = np.concatenate(joints) if joints else np.zeros((0, 2))
            canvas = drawing.draw_bodypose(canvas, together, np.where(sure, numbers, -1))
        shown = [np.where(sure[:, None] < self.joint, -1, places) for places, sure in found]
        if self.hands:
            canvas = drawing.draw_handpose(canvas, [each[hand] for hand in _HANDS for each in shown])
        if self.face:
            canvas = drawing.draw_facepose(canvas, [each[_FACE] for each in shown])
        return canvas

    def people(self, photo: Pixels) -> list[tuple[Any, Any]]:
        """Of each person 134 points, x and y as shares of the picture, and their certainties."""
        network = self.network()
        square, scale = wholebody.letterbox(photo)
        (rows,) = self._asked(network.persons, square, _ROWS)
        height, width = photo.shape[:2]
        found: list[tuple[Any, Any]] = []
        for box in wholebody.persons(rows, scale, self.person, self.overlap):
            part, middle, size = wholebody.crop(photo, box)
            across, down = self._asked(network.poses, part, (1, *_ACROSS[1:]), (1, *_DOWN[1:]))
            places, sure = wholebody.in_order(*wholebody.points(across, down, middle, size), joint=self.joint)
            places = places / np.array([width, height], float)
            sure = np.where((np.abs(places) < _FAR).all(1), sure, -1.0)
            found.append((places, sure))
        return found

    def _asked(self, network: Any, values: Any, *shapes: tuple[int | None, ...]) -> list[Any]:
        answers = run(network, values, f"{self.name}: {self.weights}")
        if [answer.shape for answer in answers] != list(shapes):
            raise CheckpointCorrupt(
                f"{self.name}: {self.weights}",
                found=f"answers of shape {', '.join(str(answer.shape) for answer in answers)}",
                expected=", ".join(map(str, shapes)),
                fix="Give the files that were published for this detector.",
            )
        return answers

    def _place(self) -> torch.device:
        import torch

        if self.device == "auto" and torch.cuda.is_available():
            runtime = needed("onnxruntime", "this detector needs onnxruntime", REQUIREMENT)
            if "CUDAExecutionProvider" not in runtime.get_available_providers():
                return torch.device("cpu")
        return super()._place()
