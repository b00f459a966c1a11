"""Poses by ViTPose: persons are found first, then the joints of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from controlkit.errors import KindMismatch
from controlkit.extras import needed
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.networks import identity
from controlkit.preprocessors.opencv import REQUIREMENT as OPENCV
from controlkit.preprocessors.opencv import opencv
from controlkit.preprocessors.pretrained import REQUIREMENT, Kind, Loaded, Pretrained
from controlkit.preprocessors.skeleton import Point, draw, from_coco

if TYPE_CHECKING:
    import torch

_JOINTS = 17
_PEOPLE = Kind("AutoModelForObjectDetection", (), ("logits", "pred_boxes"))
_PERSON = "person"


class Both(NamedTuple):
    """The network of poses, and that which finds persons, where there is one."""

    poses: Loaded
    people: Loaded | None


@dataclass(frozen=True)
class VitPose(Pretrained):
    """Skeletons of all persons, on black, for ``openpose`` models.

    More exact than ``openpose`` on hidden and unusual limbs, and free for any use; it has no hands and no
    faces. Persons that the first network does not find are not drawn: for a photograph of one person give
    ``people=""``, and nothing is looked for. The look is OpenPose's: 18 points, the neck between the
    shoulders, a point where the network is sure of it.

    Source:
        Xu et al. (2022), "ViTPose", NeurIPS; transformers ``VitPoseForPoseEstimation``, whose processor needs
        SciPy. Persons: Zhao et al. (2024), "DETRs beat YOLOs on real-time object detection", CVPR.
    """

    name = "vitpose"
    family = "openpose"
    meaning = "coloured skeletons on black"
    marks = True
    extra = f"{REQUIREMENT} scipy {OPENCV}"
    kind = Kind("VitPoseForPoseEstimation", ("vitpose",), ("heatmaps",))

    weights: str = option(
        "usyd-community/vitpose-base-simple", meaning="a hub id or a folder of transformers' layout"
    )
    people: str = option(
        "PekingU/rtdetr_r50vd_coco_o365",
        meaning="what finds persons: a hub id or a folder; empty: the whole picture is one person",
    )
    person: float = option(0.5, low=0, high=1, meaning="how sure it must be of a person")
    joint: float = option(0.3, low=0, high=1, meaning="how sure it must be of a joint")

    def variant(self) -> tuple[str, ...]:
        return (self.people, identity(self.people) if self.people else "")

    def read(self, device: torch.device) -> Both:
        needed("scipy", "this detector needs SciPy", self.extra)
        opencv()
        poses = self.loaded(self.weights, self.kind, device, self.revision)
        if poses.model.config.num_labels != _JOINTS:
            raise KindMismatch(
                f"{self.name}: {self.weights}",
                found=f"a network of {poses.model.config.num_labels} points",
                expected=f"one of COCO's {_JOINTS}",
                fix="Give usyd-community/vitpose-base-simple, or another of COCO.",
            )
        if not self.people:
            return Both(poses, None)
        people = self.loaded(self.people, _PEOPLE, device)
        if _PERSON not in people.model.config.id2label.values():
            raise KindMismatch(
                f"{self.name}: {self.people}",
                found=f"labels without {_PERSON!r}",
                expected="a network that finds persons",
                fix="Give PekingU/rtdetr_r50vd_coco_o365, or people=''.",
            )
        return Both(poses, people)

    def answer(self, network: Both, photos: list[Pixels]) -> list[Any]:
        boxes = self._boxes(network.people, photos)
        canvases = [np.zeros(photo.shape, np.uint8) for photo in photos]
        if not any(boxes):
            return canvases
        seen = [i for i, each in enumerate(boxes) if each]
        asked = [boxes[i] for i in seen]
        model, processor = network.poses
        inputs = self.inputs([photos[i] for i in seen], network.poses, boxes=asked)
        if getattr(model.config.backbone_config, "num_experts", 1) > 1:
            import torch

            count = len(inputs["pixel_values"])
            inputs["dataset_index"] = torch.zeros(count, dtype=torch.long, device=model.device)
        found = processor.post_process_pose_estimation(model(**inputs), boxes=asked)
        for i, persons in zip(seen, found, strict=True):
            for person in persons:
                draw(canvases[i], from_coco(self._points(person, canvases[i])))
        return canvases

    def shown(self, network: Both, answer: Any) -> Pixels:
        return answer

    def _points(self, person: dict[str, Any], canvas: Pixels) -> list[Point | None]:
        """Joints of which the network is sure, as shares of the picture."""
        height, width = canvas.shape[:2]
        places, scores = person["keypoints"].double().numpy(), person["scores"].double().numpy()
        return [
            (float(x) / width, float(y) / height)
            if score > self.joint and abs(x) < 4 * width and abs(y) < 4 * height
            else None
            for (x, y), score in zip(places, scores, strict=True)
        ]

    def _boxes(self, people: Loaded | None, photos: list[Pixels]) -> list[list[list[float]]]:
        """The persons on each photograph: left, upper, width and height in pixels."""
        sizes = [photo.shape[:2] for photo in photos]
        if people is None:
            return [[[0.0, 0.0, float(width), float(height)]] for height, width in sizes]
        outputs = people.model(**self.inputs(photos, people))
        found = people.processor.post_process_object_detection(
            outputs, threshold=self.person, target_sizes=sizes
        )
        names = people.model.config.id2label
        boxes: list[list[list[float]]] = []
        for each in found:
            kept: list[list[float]] = []
            for label, (left, upper, right, lower) in zip(
                each["labels"].tolist(), each["boxes"].tolist(), strict=True
            ):
                if names[label] == _PERSON and right - left > 1 and lower - upper > 1:
                    kept.append([left, upper, right - left, lower - upper])
            boxes.append(kept)
        return boxes
