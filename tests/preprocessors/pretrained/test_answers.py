"""Detectors of transformers' networks give transformers' own answers, at any size, alone or together."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from controlkit.errors import ControlKitWarning
from controlkit.preprocessors import Detector, build, free, keep, preprocess
from controlkit.preprocessors.labels import palette_of
from controlkit.preprocessors.skeleton import draw, from_coco

Folder = Callable[[str], Path]
SIZE = (150, 97)
OPTIONS: dict[str, dict[str, Any]] = {
    "sam2": {"quality": 0.0, "stability": 0.0, "points": 8, "alike": 0.9},
    "vitpose": {"joint": 0.05, "person": 0.0},
}
MODELS = {
    "depth-anything": tf.DepthAnythingForDepthEstimation,
    "dpt": tf.DPTForDepthEstimation,
    "zoedepth": tf.ZoeDepthForDepthEstimation,
    "segformer": tf.SegformerForSemanticSegmentation,
    "upernet": tf.UperNetForSemanticSegmentation,
    "mask2former": tf.Mask2FormerForUniversalSegmentation,
    "oneformer": tf.OneFormerForUniversalSegmentation,
    "sam2": tf.Sam2Model,
    "vitpose": tf.VitPoseForPoseEstimation,
}
DEPTH = ("depth-anything", "dpt", "zoedepth")
SEMANTIC = ("segformer", "upernet", "mask2former", "oneformer")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(autouse=True, scope="module")
def many_held() -> Iterator[None]:
    keep(20)
    yield
    keep(2)
    free()


@cache
def photo(title: str, size: tuple[int, int] = SIZE) -> Pixels:
    return np.asarray(Image.fromarray(getattr(data, title)()).convert("RGB").resize(size))


def detector(folder: Folder, name: str, **more: Any) -> Detector:
    options = {**OPTIONS.get(name, {}), **more}
    if name == "vitpose":
        options.setdefault("people", str(folder("people")))
    return build(name, weights=str(folder(name)), **options)


@cache
def theirs(name: str, place: Path) -> tuple[Any, Any]:
    model = MODELS[name].from_pretrained(place).eval()
    kind = tf.OneFormerProcessor if name == "oneformer" else tf.AutoImageProcessor
    return model, kind.from_pretrained(place)


def their_depth(name: str, place: Path, picture: Pixels) -> Pixels:
    model, processor = theirs(name, place)
    size = picture.shape[:2]
    with torch.no_grad():
        outputs = model(**processor(images=Image.fromarray(picture), return_tensors="pt"))
    source = {"source_sizes": [size]} if name == "zoedepth" else {}
    (found,) = processor.post_process_depth_estimation(outputs, target_sizes=[size], **source)
    depth = found["predicted_depth"]
    if name == "zoedepth":  # controlnet-aux's rule
        plane = depth.numpy()
        low, high = np.percentile(plane, 2), np.percentile(plane, 85)
        return ((1.0 - (plane - low) / (high - low)) * 255.0).clip(0, 255).astype(np.uint8)
    depth = (depth - depth.min()) / (depth.max() - depth.min())  # the rule of their pipeline
    return (depth.numpy() * 255).astype(np.uint8)


def their_labels(name: str, place: Path, picture: Pixels) -> np.ndarray[Any, Any]:
    model, processor = theirs(name, place)
    asked = {"task_inputs": ["semantic"]} if name == "oneformer" else {}
    with torch.no_grad():
        outputs = model(**processor(images=[Image.fromarray(picture)], return_tensors="pt", **asked))
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[picture.shape[:2]])
    return labels.numpy()


@pytest.mark.parametrize("title", ["astronaut", "coffee"])
@pytest.mark.parametrize("name", DEPTH)
def test_depth_is_transformers_own(folder: Folder, name: str, title: str) -> None:
    picture = photo(title)
    ours = detector(folder, name).detect(picture)
    assert np.array_equal(ours, their_depth(name, folder(name), picture))
    assert len(np.unique(ours)) >= 50
    assert (ours.min(), ours.max()) == (0, 255)


@pytest.mark.parametrize("title", ["astronaut", "coffee"])
@pytest.mark.parametrize("name", SEMANTIC)
def test_labels_are_transformers_own(folder: Folder, name: str, title: str) -> None:
    picture = photo(title)
    ours = detector(folder, name).detect(picture)
    labels = their_labels(name, folder(name), picture)
    names = MODELS[name].from_pretrained(folder(name)).config.id2label
    assert np.array_equal(ours, palette_of(names, "auto", name)[labels])
    assert len(np.unique(labels)) >= 3


def test_regions_are_those_of_their_pipeline(folder: Folder) -> None:
    picture = photo("astronaut")
    model, processor = theirs("sam2", folder("sam2"))
    generator = tf.pipeline("mask-generation", model=model, image_processor=processor)
    found = generator(
        Image.fromarray(picture),
        points_per_crop=8,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        crops_nms_thresh=0.9,
    )
    masks = sorted(found["masks"], key=lambda mask: -int(mask.sum()))
    expected = np.zeros(picture.shape, np.uint8)
    colours = np.random.RandomState(3).randint(1, 256, (len(masks), 3), np.uint8)
    for mask, colour in zip(masks, colours, strict=True):
        expected[np.asarray(mask, bool)] = colour
    ours = detector(folder, "sam2", seed=3).detect(picture)
    assert np.array_equal(ours, expected)
    assert len(np.unique(ours.reshape(-1, 3), axis=0)) >= 3
    other = detector(folder, "sam2", seed=4).detect(picture)
    assert not np.array_equal(other, ours)
    assert np.array_equal(other.any(axis=2), ours.any(axis=2))


@pytest.mark.parametrize(("name", "options"), [("sam2", {"stability": 1.0}), ("vitpose", {"person": 1.0})])
def test_nothing_found_is_a_black_map(folder: Folder, name: str, options: dict[str, Any]) -> None:
    with pytest.warns(ControlKitWarning, match="found nothing"):
        found = preprocess(photo("astronaut"), detector(folder, name, **options))
    assert not np.asarray(found).any()


def test_joints_below_the_threshold_are_left_out(folder: Folder) -> None:
    few, many = (detector(folder, "vitpose", joint=joint).detect(photo("coffee")) for joint in (0.4, 0.05))
    assert few.any(axis=2).sum() < many.any(axis=2).sum()


def their_persons(place: Path, picture: Pixels, least: float) -> list[list[float]]:
    model = tf.RTDetrForObjectDetection.from_pretrained(place).eval()
    processor = tf.RTDetrImageProcessor.from_pretrained(place)
    with torch.no_grad():
        outputs = model(**processor(images=Image.fromarray(picture), return_tensors="pt"))
    (found,) = processor.post_process_object_detection(
        outputs, threshold=least, target_sizes=torch.tensor([picture.shape[:2]])
    )
    boxes = found["boxes"][found["labels"] == 0].numpy().copy()
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 1).all(axis=1)]
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.tolist()


@pytest.mark.parametrize("alone", [True, False])
def test_joints_are_transformers_own(folder: Folder, alone: bool) -> None:
    picture = photo("astronaut")
    height, width = picture.shape[:2]
    boxes = [[0.0, 0.0, float(width), float(height)]]
    if not alone:
        boxes = their_persons(folder("people"), picture, 0.0)
        assert len(boxes) >= 2
    model, processor = theirs("vitpose", folder("vitpose"))
    with torch.no_grad():
        outputs = model(**processor(Image.fromarray(picture), boxes=[boxes], return_tensors="pt"))
    (persons,) = processor.post_process_pose_estimation(outputs, boxes=[boxes])
    expected = np.zeros(picture.shape, np.uint8)
    drawn = 0
    for person in persons:
        points = [
            (float(x) / width, float(y) / height) if score > 0.05 else None
            for (x, y), score in zip(person["keypoints"].tolist(), person["scores"].tolist(), strict=True)
        ]
        drawn += sum(point is not None for point in points)
        draw(expected, from_coco(points))
    assert drawn >= 5
    ours = detector(folder, "vitpose", **({"people": ""} if alone else {})).detect(picture)
    assert np.array_equal(ours, expected)
    assert expected.any()


@pytest.mark.parametrize("size", [(1, 1), (40, 300), (3, 200)])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::controlkit.errors.ControlKitWarning")
def test_size_out_is_size_in(folder: Folder, name: str, size: tuple[int, int]) -> None:
    found = preprocess(Image.fromarray(photo("cat", size)), detector(folder, name), any_aspect=True)
    assert found.size == size
    assert found.mode == "RGB"


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_its_pictures(folder: Folder, name: str) -> None:
    chosen = detector(folder, name)
    pictures = [photo(title) for title in ("astronaut", "coffee", "cat")]
    together = chosen.detect_many(pictures)
    assert len(together) == 3
    for picture, one in zip(pictures, together, strict=True):
        alone = chosen.detect(picture)
        if name in DEPTH:
            assert np.abs(alone.astype(int) - one).max() <= 1
        else:
            assert (alone != one).any(axis=-1).mean() < 0.002  # near ties


def test_zoedepth_chooses_for_each_picture(spoilt: Folder) -> None:
    place = spoilt("zoedepth")
    tensors = load_file(place / "model.safetensors")
    tensors["metric_head.mlp_classifier.linear2.bias"][0] += 1  # so that pictures differ in their choice
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    pictures = [photo(title) for title in ("astronaut", "coffee", "cat")]
    model, processor = theirs("zoedepth", place)
    with torch.no_grad():
        inputs = processor(images=[picture.copy() for picture in pictures], return_tensors="pt")[
            "pixel_values"
        ]
        alone = [model(inputs[i : i + 1]) for i in range(3)]
        together = model(inputs).predicted_depth[2]
    assert len({int(each.domain_logits.argmax()) for each in alone}) == 2
    assert not torch.allclose(together, alone[2].predicted_depth[0], rtol=0.01)  # theirs votes over the batch
    chosen = build("zoedepth", weights=str(place))
    for picture, one in zip(pictures, chosen.detect_many(pictures), strict=True):
        assert np.array_equal(one, chosen.detect(picture))


HALF = {  # most of the pixels that may differ; two of them cut their attention at a threshold
    "segformer": 0.01,
    "upernet": 0.01,
    "sam2": 0.01,
    "oneformer": 0.2,
    "mask2former": 0.4,
}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vitpose"])
def test_half_is_near(folder: Folder, name: str) -> None:
    picture = photo("coffee")
    full = detector(folder, name).detect(picture)
    half = detector(folder, name, half=True).detect(picture)
    assert half.dtype == np.uint8
    assert half.shape == full.shape
    if name in DEPTH:
        assert np.abs(full.astype(int) - half).mean() < 1
    else:
        assert (full != half).any(axis=-1).mean() < HALF[name]


def test_half_is_near_before_joints_are_chosen(folder: Folder) -> None:
    """Of random heatmaps the highest point is anywhere, so that skeletons tell nothing."""
    chosen, picture = detector(folder, "vitpose"), photo("coffee")
    poses: Any = chosen.network().poses
    inputs = chosen.inputs([picture], poses, boxes=[[[0.0, 0.0, *map(float, picture.shape[1::-1])]]])
    with torch.inference_mode():
        full = poses.model(**inputs).heatmaps
        with torch.autocast("cpu", torch.float16):
            half = poses.model(**inputs).heatmaps
    assert float((half - full).abs().max()) < 0.02 * float(full.abs().max())
    assert not torch.equal(half, full)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_runs_with_the_network_closed(
    folder: Folder, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen, picture = detector(folder, name), photo("astronaut")

    def closed(*_given: Any, **_more: Any) -> Any:
        raise PermissionError("no network here")

    monkeypatch.setattr(socket, "socket", closed)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # noqa: NPY002
    kept = picture.copy()
    free()
    capfd.readouterr()
    assert chosen.detect(picture).any()
    assert capfd.readouterr().out == ""
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # noqa: NPY002
    assert before == after
    assert np.array_equal(picture, kept)


@pytest.mark.parametrize("name", DEPTH)
def test_a_plane_without_depth_is_black(folder: Folder, name: str) -> None:
    chosen: Any = detector(folder, name)
    assert not chosen.shown(None, np.full((5, 7), 3.0, np.float32)).any()


def test_gamma_darkens_the_middle(folder: Folder) -> None:
    picture = photo("coffee")
    plain = detector(folder, "zoedepth").detect(picture)
    dark = detector(folder, "zoedepth", gamma=True).detect(picture)
    assert (dark <= plain).all()
    assert ((dark == 0) >= (plain == 0)).all()
    assert dark.mean() < plain.mean() - 5


def test_another_resolution_brings_labels_back_unblurred(folder: Folder) -> None:
    found = preprocess(photo("coffee"), detector(folder, "segformer"), resolution=48)
    assert found.size == SIZE
    names = MODELS["segformer"].from_pretrained(folder("segformer")).config.id2label
    known = {tuple(colour) for colour in palette_of(names, "auto", "").tolist()}
    assert {tuple(colour) for colour in np.asarray(found).reshape(-1, 3).tolist()} <= known
