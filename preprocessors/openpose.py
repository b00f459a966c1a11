"""Poses by OpenPose: skeletons, and hands and faces on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.errors import ParameterError
from controlkit.extras import needed
from controlkit.preprocessors.auxiliary import ANNOTATORS, Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.statefiles import filled, in_float32

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class OpenPose(Auxiliary):
    """Skeletons of all persons, on black, for ``openpose`` models.

    Persons should be upright and larger than a fifth of the picture's height; hands and faces are looked for
    where a body has a wrist or a head. The drawing has the published colours, in RGB. OpenPose's networks are
    licensed for non-commercial use.

    Source:
        Cao et al. (2019), "OpenPose: realtime multi-person 2D pose estimation using part affinity fields",
        TPAMI; controlnet-aux ``OpenposeDetector``.
    """

    name = "openpose"
    family = "openpose"
    meaning = "coloured skeletons on black"
    marks = True
    files = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")

    weights: str = option(
        ANNOTATORS, meaning="where its weights are: a hub id, a folder, or the body's file beside the others"
    )
    body: bool = option(True, meaning="draw bodies")
    hands: bool = option(False, meaning="look for hands too")
    face: bool = option(False, meaning="look for faces too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.body or self.hands or self.face):
            raise ParameterError(
                f"{self.name}: body, hands, face",
                found="nothing to draw",
                expected="at least one of them",
                fix="Give body=True.",
            )

    def wanted(self) -> tuple[str, ...]:
        body, hands, face = self.files
        return (body, *([hands] if self.hands else []), *([face] if self.face else []))

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        places = dict(zip(self.wanted(), paths, strict=True))
        if self.hands:
            needed("matplotlib", "the colours of hands need matplotlib", "matplotlib")
        whole = auxiliary("open_pose")
        networks = auxiliary("open_pose.model")
        kinds = (
            (whole.Body, networks.bodypose_model),
            (whole.Hand, networks.handpose_model),
            (whole.Face, auxiliary("open_pose.face").FaceNet),
        )
        parts: list[Any] = []
        for file, (kind, network) in zip(self.files, kinds, strict=True):
            if file not in places:
                parts.append(None)
                continue
            part = kind.__new__(kind)  # its constructor reads a file of its own accord
            named = str if file == self.files[2] else _in_the_file
            part.model = in_float32(
                filled(network(), places[file], self.name, named=named, others=named is not str)
            )
            parts.append(part)
        return _Parts(whole.OpenposeDetector(*parts), [part for part in parts if part is not None])

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        return detector.whole(
            photo,
            detect_resolution=side,
            image_resolution=side,
            include_body=self.body,
            include_hand=self.hands,
            include_face=self.face,
            output_type="np",
        )


@dataclass(frozen=True)
class _Parts:
    """The detector, of which some parts may be left out."""

    whole: Any
    there: list[Any]

    def to(self, device: Any) -> _Parts:
        for part in self.there:
            part.to(device)
        return self


def _in_the_file(name: str) -> str:
    """Names in the file lack the block that the network has them in."""
    return name.partition(".")[2]
