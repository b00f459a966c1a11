"""What the detectors of regions, depth, lines and brightness draw, against OpenCV, scikit-image and truth."""

from __future__ import annotations

import json
import pickle
import sys
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import color, data, segmentation

import controlkit as ck
from controlkit.binding import read_map
from controlkit.errors import HintError, MissingExtra, ParameterError
from controlkit.preprocessors import build, marked, preprocess

RGB = np.random.default_rng(9).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def drawn(photo: Any, name: str, **options: Any) -> np.ndarray:
    result = preprocess(photo, name, **options)
    assert isinstance(result, Image.Image)
    return np.asarray(result)


def disc(height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a blue ground with a little noise, and where it is."""
    down, across = np.mgrid[:height, :width]
    inside = (down - height / 2) ** 2 + (across - width / 2) ** 2 < (height / 4) ** 2
    scene = np.where(inside[..., None], (200, 40, 30), (30, 60, 160)).astype(float)
    noise = np.random.default_rng(10).normal(0, 4, scene.shape)
    return (scene + noise).clip(0, 255).astype(np.uint8), inside


def test_recolor_is_the_lightness_or_the_value_of_opencv() -> None:
    for method, code, channel in (("luminance", cv2.COLOR_RGB2Lab, 0), ("intensity", cv2.COLOR_RGB2HSV, 2)):
        theirs = cv2.cvtColor(RGB, code)[..., channel]
        ours = drawn(RGB, "recolor", method=method)
        assert np.array_equal(ours, np.repeat(theirs[..., None], 3, axis=2))
        darker = drawn(RGB, "recolor", method=method, gamma=2)[..., 0]
        assert np.abs(darker - 255 * (theirs / 255) ** 2).max() <= 0.5


def test_lines_follow_a_frame_and_leave_short_ones_out() -> None:
    frame = np.zeros((128, 160, 3), np.uint8)
    frame[30:100, 40:130] = 255
    frame[8:18, 8:18] = 255
    every, long = (drawn(frame, "lines", length=length)[..., 0] for length in (5, 40))
    assert set(np.unique(long)) == {0, 255}
    rows, columns = np.nonzero(long)
    on_frame = (np.abs(rows - 29.5) < 2) | (np.abs(rows - 99.5) < 2)
    on_frame |= (np.abs(columns - 39.5) < 2) | (np.abs(columns - 129.5) < 2)
    assert on_frame.all()
    assert 250 < on_frame.sum() < 450
    assert every[:20, :20].any()
    assert not long[:20, :20].any()


def test_lines_are_the_segments_of_opencv_one_pixel_wide() -> None:
    photo = np.asarray(ck.embedded.scene(3).image)
    segments = cv2.createLineSegmentDetector().detect(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))[0]
    canvas = np.zeros(photo.shape[:2], np.uint8)
    for left, top, right, bottom in segments.reshape(-1, 4).round().astype(int).tolist():
        cv2.line(canvas, (left, top), (right, bottom), 255, 1)
    assert canvas.any()
    assert np.array_equal(drawn(photo, "lines", length=0)[..., 0], canvas)


def test_a_flat_wall_faces_the_viewer_and_slopes_have_their_colours() -> None:
    flat = np.full((64, 64, 3), 77, np.uint8)
    assert (drawn(flat, "normal", source="depth") == (128, 128, 255)).all()
    ramp = np.repeat(np.linspace(0, 255, 64).round().astype(np.uint8)[None, :, None], 3, axis=2)
    rising = ramp.repeat(64, axis=0)
    cases = [  # nearer to the right: faces left, red; nearer below, as the ground: faces up, green
        (rising, "bright", 0, 1),
        (rising, "dark", 0, -1),
        (rising.transpose(1, 0, 2), "bright", 1, 1),
        (rising.transpose(1, 0, 2)[::-1], "bright", 1, -1),
    ]
    for depth, near, channel, sign in cases:
        found = drawn(np.ascontiguousarray(depth), "normal", source="depth", near=near, relief=1)
        middle = found[20:44, 20:44].astype(float) / 127.5 - 1
        slope = 64 / 63
        wanted = np.array([0.0, 0.0, 1.0])
        wanted[channel] = sign * slope
        assert np.abs(middle - wanted / np.linalg.norm(wanted)).max() < 0.02
        assert np.abs(np.linalg.norm(found.astype(float) / 127.5 - 1, axis=2) - 1).max() < 0.02


def test_the_far_background_of_normals_can_be_flat() -> None:
    rising = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 3, axis=2).repeat(64, axis=0)
    found = drawn(rising, "normal", source="depth", background=0.5)
    assert (found[:, :30] == (128, 128, 255)).all()
    assert (found[:, 34:58, 0] > 150).all()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the ranks (Spearman), ties in any order."""
    first, second = (values.ravel().argsort(kind="stable").argsort(kind="stable") for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def test_depth_orders_scenes_and_a_street_as_they_are() -> None:
    scenes = [ck.embedded.scene(seed) for seed in range(20)]
    found = [
        correlation(drawn(scene.image, "depth")[..., 0], np.asarray(scene.depth.convert("L")))
        for scene in scenes
    ]
    assert np.median(found) > 0.9
    assert min(found) > 0.5
    left, _, disparity = data.stereo_motorcycle()
    seen = np.isfinite(disparity)
    assert correlation(drawn(left, "depth")[..., 0][seen][::9], disparity[seen][::9]) > 0.6


def test_depth_cues_one_by_one() -> None:
    noise = np.random.default_rng(11).integers(0, 256, (96, 96, 3), np.uint8)
    blurred = noise.copy()
    blurred[:, 48:] = cv2.GaussianBlur(noise, (0, 0), 4)[:, 48:]
    veiled = noise // 2
    veiled[:, 48:] = veiled[:, 48:] // 2 + 120
    for photo, cue in ((blurred, "sharpness"), (veiled, "haze")):
        others = {name: 0 for name in ("position", "sharpness", "haze") if name != cue}
        found = drawn(photo, "depth", **others)[..., 0].astype(float)
        assert found[:, :36].mean() - found[:, 60:].mean() > 80, cue
    ramp = drawn(np.full((50, 30, 3), 128, np.uint8), "depth", smooth=0)[..., 0]
    assert (np.diff(ramp[:, 3].astype(int)) > 0).all()
    assert (ramp.min(), ramp.max()) == (0, 255)
    assert (drawn(noise, "depth", position=0, sharpness=0, haze=0) == 128).all()


def test_superpixels_are_regions_of_scikit_image_in_their_mean_colour() -> None:
    photo = np.asarray(ck.embedded.scene(5).image)
    labels = segmentation.slic(photo, n_segments=60, compactness=10.0, start_label=0)
    theirs = color.label2rgb(labels, photo, kind="avg", bg_label=-1)
    ours = drawn(photo, "superpixels", count=60, merge=0)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    merged = drawn(photo, "superpixels", count=60)
    assert 1 < len(np.unique(merged.reshape(-1, 3), axis=0)) < len(np.unique(labels))


@pytest.mark.parametrize(("method", "most"), [("slic", 2), ("felzenszwalb", 4)])  # the latter keeps the rim
def test_superpixels_find_a_disc(method: str, most: int) -> None:
    photo, inside = disc()
    found = drawn(photo, "superpixels", method=method)
    assert 2 <= len(np.unique(found.reshape(-1, 3), axis=0)) <= most
    red = found[..., 0] > 115
    assert (red & inside).sum() / (red | inside).sum() > 0.9


def test_kmeans_finds_flat_colours_and_no_more_than_asked() -> None:
    flat = np.zeros((60, 90, 3), np.uint8)
    flat[:, :30], flat[:, 30:60], flat[:, 60:] = (250, 20, 30), (10, 200, 60), (40, 50, 220)
    found = drawn(flat, "kmeans", colors=3, sigma=0)
    assert np.abs(found.astype(int) - flat).max() <= 1
    for colors in (2, 5, 17):
        few = drawn(RGB, "kmeans", colors=colors)
        assert len(np.unique(few.reshape(-1, 3), axis=0)) == colors
    assert np.array_equal(drawn(RGB, "kmeans", seed=4), drawn(RGB, "kmeans", seed=4))


def test_kmeans_gives_each_pixel_the_class_of_opencv() -> None:
    lab = cv2.cvtColor(RGB.astype(np.float32) / 255, cv2.COLOR_RGB2Lab).reshape(-1, 3)
    cv2.setRNGSeed(0)
    _, labels, _ = cv2.kmeans(lab, 6, None, (3, 30, 0.2), 2, cv2.KMEANS_PP_CENTERS)  # pyright: ignore[reportCallIssue, reportArgumentType]
    ours = np.unique(drawn(RGB, "kmeans", colors=6, sigma=0).reshape(-1, 3), axis=0, return_inverse=True)[1]
    pairs = np.unique(np.stack([ours.reshape(-1), labels.reshape(-1)]), axis=1, return_counts=True)[1]
    assert np.sort(pairs)[-6:].sum() / labels.size > 0.98


def test_grabcut_cuts_out_what_is_in_the_box_or_under_the_scribble() -> None:
    photo, inside = disc()
    strokes = np.full(inside.shape, 128, np.uint8)
    strokes[46:50, 60:68], strokes[4:8] = 255, 0
    for options in ({}, {"box": "0.2, 0.1, 0.8, 0.9"}, {"scribble": strokes}):
        found = drawn(photo, "grabcut", **options)[..., 0]
        assert set(np.unique(found)) == {0, 255}
        kept = found > 0
        assert (kept & inside).sum() / (kept | inside).sum() > 0.95, options
    around = drawn(photo, "grabcut", scribble=255 - strokes)[..., 0] > 0
    assert (around & inside).mean() < 0.01


HOLE = np.zeros((40, 56), bool)
HOLE[10:30, 14:42] = True


@pytest.mark.parametrize(
    "options",
    [
        {"mask": HOLE},
        {"mask": Image.fromarray(HOLE)},
        {"mask": HOLE[::2, ::2]},
        {"box": "0.25,0.25,0.75,0.75"},
    ],
)
def test_inpaint_hides_what_is_to_be_painted(options: dict[str, Any]) -> None:
    made = preprocess(RGB, "inpaint", **options)
    assert isinstance(made, Image.Image)
    assert np.array_equal(np.asarray(made), np.where(HOLE[..., None], 0, RGB))
    assert np.array_equal(np.asarray(made.info["hidden"]), HOLE * 255)
    numbers = marked(made)
    assert numbers.dtype == np.float32
    assert (numbers[HOLE] == -1).all()
    assert np.array_equal(numbers[~HOLE], RGB[~HOLE].astype(np.float32) / np.float32(255))


def test_a_control_reads_hidden_pixels_as_minus_one() -> None:
    made = preprocess(RGB, "inpaint", mask=HOLE)
    wanted = torch.from_numpy(marked(made)).permute(2, 0, 1)[None]
    common: dict[str, Any] = {"channels": 3, "resize": "stretch", "channel_order": None}
    for image, detect, options in ((made, None, None), (RGB, "inpaint", {"mask": HOLE})):
        bound = read_map(image, detect=detect, detect_options=options, **common)
        assert torch.equal(bound.rows, wanted)
        assert "pixels of -1 kept" in " ".join(bound.notes)
    two = read_map([made, made], detect=None, detect_options=None, **common)
    assert torch.equal(two.rows, torch.cat([wanted, wanted]))
    shown = read_map(Image.fromarray(np.asarray(made)), detect=None, detect_options=None, **common)
    assert float(shown.rows.min()) == 0


def test_a_hidden_part_of_another_size_is_refused() -> None:
    made = preprocess(RGB, "inpaint", mask=HOLE)
    with pytest.raises(HintError, match="Crop or resize the photograph and its mask first"):
        marked(made.crop((0, 0, 8, 8)))  # type: ignore[union-attr]
    assert marked("anything else") == "anything else"


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing to hide": ("inpaint", {}, "neither mask nor box"),
    "both": ("inpaint", {"mask": HOLE, "box": "0,0,1,1"}, "mask and box"),
    "another picture's mask": (
        "inpaint",
        {"mask": HOLE[:, :20]},
        "found 20 x 40 pixels; needed the proportions",
    ),
    "a path as mask": ("inpaint", {"mask": "mask.png"}, "Open it first: ck.open_image"),
    "two masks": ("inpaint", {"mask": np.stack([HOLE, HOLE])[:, None]}, "several pictures"),
    "three numbers": ("grabcut", {"box": "0,0,1"}, "left, top, right, bottom as fractions"),
    "pixels": ("grabcut", {"box": "10,10,300,300"}, "Divide pixels by width and height"),
    "right of left": ("inpaint", {"box": "0.5,0,0.2,1"}, "left is below right"),
    "NaN": ("inpaint", {"box": "nan,0,1,1"}, "as fractions"),
    "no text": ("inpaint", {"box": 3}, "a text"),
    "no black stroke": ("grabcut", {"scribble": np.full((40, 56), 255, np.uint8)}, "no black stroke"),
    "no white stroke": ("grabcut", {"scribble": np.zeros((40, 56), np.uint8)}, "no white stroke"),
    "another's scribble": ("grabcut", {"scribble": np.eye(9, dtype=bool)}, "needed the proportions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_regions_are_refused(case: str) -> None:
    name, options, text = WRONG[case]
    with pytest.raises((ParameterError, HintError)) as caught:
        preprocess(RGB, name, **options)
    assert text in str(caught.value), str(caught.value)


def test_a_mask_follows_the_size_of_the_map() -> None:
    made = preprocess(Image.fromarray(RGB), "inpaint", mask=HOLE, size=80)
    assert made.info["hidden"].size == made.size == (112, 80)
    assert np.asarray(made.info["hidden"])[20:60, 28:84].all()


def test_records_hold_a_mask_as_a_text() -> None:
    one, same, other = (build("inpaint", mask=mask) for mask in (HOLE, HOLE.copy(), ~HOLE))
    assert one == same != other
    assert hash(one) == hash(same)
    record = json.dumps(preprocess(Image.fromarray(RGB), one).info["controlkit"])
    assert "56 x 40, sha256 " in record
    for copied in (pickle.loads(pickle.dumps(one)), deepcopy(one)):
        assert np.array_equal(np.asarray(preprocess(RGB, copied)), np.asarray(preprocess(RGB, one)))
    assert json.dumps(asdict(one)) in record  # type: ignore[call-overload]


def test_a_missing_scikit_image_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(MissingExtra, match="Run: pip install scikit-image"):
        preprocess(RGB, "superpixels")
