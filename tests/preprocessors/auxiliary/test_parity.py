"""Detectors of controlnet-aux give its own maps, to the bit where the sizes are its own, and at any size."""

from __future__ import annotations

import inspect
import random
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import morphology

from controlkit.preprocessors import build, preprocess
from controlkit.preprocessors.base import Pixels
from tests.preprocessors.auxiliary.conftest import Written
from tests.preprocessors.auxiliary.published import photo


@dataclass(frozen=True)
class Case:
    """A detector with options, and the same in controlnet-aux."""

    name: str
    files: tuple[str, ...]
    theirs: str
    options: dict[str, Any] = field(default_factory=dict)
    called: dict[str, Any] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)
    sized: bool = True
    """Whether it takes ``image_resolution``."""
    slow: bool = False
    size: tuple[int, int] = (128, 192)

    def __str__(self) -> str:
        return "-".join((self.name, *self.options))


REMOVE = morphology.remove_small_objects
MTEED = {"filename": "Anyline/MTEED.pth"}
STROKES = {"sigma": 1.0, "threshold": 1.0}
STROKES_THERE = {"guassian_sigma": 1.0, "intensity_threshold": 1}
POSE = ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")
CASES = (
    Case("hed", ("ControlNetHED.pth",), "HEDdetector"),
    Case("hed", ("ControlNetHED.pth",), "HEDdetector", {"safe": True}, {"safe": True}),
    Case("hed", ("ControlNetHED.pth",), "HEDdetector", {"scribble": True}, {"scribble": True}),
    Case("pidinet", ("table5_pidinet.pth",), "PidiNetDetector"),
    Case("pidinet", ("table5_pidinet.pth",), "PidiNetDetector", {"safe": True}, {"safe": True}),
    Case("pidinet", ("table5_pidinet.pth",), "PidiNetDetector", {"sharp": True}, {"apply_filter": True}),
    Case("pidinet", ("table5_pidinet.pth",), "PidiNetDetector", {"scribble": True}, {"scribble": True}),
    Case("teed", ("5_model.pth",), "TEEDdetector", read={"filename": "5_model.pth"}, sized=False),
    Case(
        "teed",
        ("5_model.pth",),
        "TEEDdetector",
        {"safe_steps": 0},
        {"safe_steps": 0},
        {"filename": "5_model.pth"},
        sized=False,
    ),
    Case("anyline", ("Anyline/MTEED.pth",), "AnylineDetector", read=MTEED, sized=False),
    Case("anyline", ("Anyline/MTEED.pth",), "AnylineDetector", STROKES, STROKES_THERE, MTEED, sized=False),
    Case("lineart-realistic", ("sk_model.pth", "sk_model2.pth"), "LineartDetector"),
    Case(
        "lineart-realistic",
        ("sk_model.pth", "sk_model2.pth"),
        "LineartDetector",
        {"coarse": True},
        {"coarse": True},
    ),
    Case("lineart-anime", ("netG.pth",), "LineartAnimeDetector"),
    Case("mlsd", ("mlsd_large_512_fp32.pth",), "MLSDdetector"),
    Case(
        "mlsd",
        ("mlsd_large_512_fp32.pth",),
        "MLSDdetector",
        {"score": 0.1, "length": 2.0},
        {"thr_v": 0.1, "thr_d": 2.0},
    ),
    Case("midas", ("dpt_hybrid-midas-501f0c75.pt",), "MidasDetector", slow=True),
    Case("leres", ("res101.pth",), "LeresDetector", slow=True),
    Case(
        "leres",
        ("res101.pth",),
        "LeresDetector",
        {"remove_near": 20.0, "remove_background": 30.0},
        {"thr_a": 20.0, "thr_b": 30.0},
        slow=True,
    ),
    Case("zoe", ("ZoeD_M12_N.pt",), "ZoeDetector", slow=True, size=(64, 128)),
    Case("normal-bae", ("scannet.pt",), "NormalBaeDetector", slow=True),
    Case("openpose", POSE, "OpenposeDetector", slow=True, size=(128, 128)),
    Case(
        "openpose",
        POSE,
        "OpenposeDetector",
        {"body": False, "hands": True, "face": True},
        {"include_body": False, "include_hand": True, "include_face": True},
        slow=True,
        size=(128, 128),
    ),
    Case(
        "sam",
        ("mobile_sam.pt",),
        "SamDetector",
        {"model": "vit_t", "points": 3, "quality": 0.0, "stability": 0.0, "seed": 5},
        read={"model_type": "vit_t", "filename": "mobile_sam.pt"},
        slow=True,
    ),
    Case(
        "sam",
        ("checkpoints/sam_vit_b_01ec64.pth",),
        "SamDetector",
        {"points": 3, "quality": 0.0, "stability": 0.0, "seed": 5},
        read={"model_type": "vit_b", "filename": "checkpoints/sam_vit_b_01ec64.pth"},
        slow=True,
    ),
)
ALL = [pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.slow else []) for case in CASES]
FIRST = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
    for i, case in enumerate(CASES)
    if case.name not in {other.name for other in CASES[:i]}
]


def as_published(marks: Pixels, min_size: int, connectivity: int) -> Pixels:
    """scikit-image 0.26 takes its old argument for the new one, and drops objects of that very size too."""
    new = "max_size" in inspect.signature(REMOVE).parameters
    limit = {"max_size": min_size - 1} if new else {"min_size": min_size}
    return REMOVE(marks, connectivity=connectivity, **limit)


def theirs(case: Case, folder: Path, image: Pixels, monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """What controlnet-aux makes of the photograph by itself, from the same files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import controlnet_aux

        kind = getattr(controlnet_aux, case.theirs)
        if case.name == "leres":  # its own way wants a second network, and writes into the current folder
            from controlnet_aux.leres import RelDepthModel, strip_prefix_if_present

            saved = torch.load(folder / case.files[0], weights_only=True)["depth_model"]
            network = RelDepthModel(backbone="resnext101")
            network.load_state_dict(strip_prefix_if_present(saved, "module."), strict=True)
            detector = kind(network.eval(), None)
        else:
            detector = kind.from_pretrained(str(folder), **case.read)
        if case.name == "anyline":
            monkeypatch.setattr(morphology, "remove_small_objects", as_published)
        if case.name == "sam":
            from controlnet_aux.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator

            detector.mask_generator = SamAutomaticMaskGenerator(
                detector.mask_generator.predictor.model,
                points_per_side=case.options["points"],
                pred_iou_thresh=0.0,
                stability_score_thresh=0.0,
            )
            np.random.seed(case.options["seed"])  # noqa: NPY002  where it takes its colours from
        side = min(image.shape[:2])
        sizes = {"detect_resolution": side, **({"image_resolution": side} if case.sized else {})}
        return detector(image.copy(), output_type="np", **sizes, **case.called)


def as_rgb(found: Pixels) -> Pixels:
    return np.repeat(found[..., None], 3, axis=2) if found.ndim == 2 else found


@pytest.mark.parametrize("case", ALL)
def test_the_map_is_controlnet_auxs_own_to_the_bit(
    case: Case, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(*case.files)
    image = photo(*case.size)
    expected = theirs(case, folder, image, monkeypatch)
    random.seed(1)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    given = image.copy()
    found = as_rgb(build(case.name, weights=str(folder), device="cpu", **case.options).detect(given))
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert found.std() > 2, "next to nothing drawn"
    assert len(np.unique(found)) > 1
    assert np.array_equal(given, image)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


@pytest.mark.parametrize("case", FIRST)
def test_an_odd_size_is_continued_and_cut_back(
    case: Case, written: Written, capfd: pytest.CaptureFixture[str]
) -> None:
    detector = build(case.name, weights=str(written(*case.files)), device="cpu", **case.options)
    image = photo(97, 110)
    capfd.readouterr()
    found = detector.detect(image)
    padded = np.pad(image, ((0, 31), (0, 18), (0, 0)), mode="edge")
    assert found.shape[:2] == (97, 110)
    assert np.array_equal(found, detector.detect(padded)[:97, :110])
    assert np.array_equal(found, detector.detect(image)), "not the same twice"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", [case for case in FIRST if case.values[0].name != "openpose"])
def test_pictures_without_content(case: Case, written: Written) -> None:
    detector = build(case.name, weights=str(written(*case.files)), device="cpu", **case.options)
    wide = (1, 4096) if case.name in {"teed", "anyline", "mlsd"} else (1, 130)
    for shape in ((1, 1), wide, (64, 64)):
        found = detector.detect(np.full((*shape, 3), 128, np.uint8))
        assert found.shape[:2] == shape
        assert found.dtype == np.uint8


HALF = [case for case in FIRST if case.values[0].name in {"teed", "pidinet", "mlsd"}]


@pytest.mark.parametrize("case", HALF)
def test_float16_gives_nearly_the_same(case: Case, written: Written) -> None:
    options = {**case.options, **({"safe_steps": 0} if case.name == "teed" else {})}
    folder = str(written(*case.files))
    image = photo(64, 64)[:40]
    whole, half = (
        build(case.name, weights=folder, device="cpu", half=half, **options).detect(image).astype(int)
        for half in (False, True)
    )
    if case.name == "mlsd":  # lines are there or not
        assert (whole > 0).any()
        assert (whole != half).mean() < 0.3 * (whole > 0).mean()
    else:
        assert np.abs(whole - half).max() <= 2
        assert np.abs(whole - half).mean() < 0.5


def test_numbers_above_float16_are_computed_again(written: Written, tmp_path: Path) -> None:
    state = torch.load(written("ControlNetHED.pth") / "ControlNetHED.pth", weights_only=True)
    state["block1.convs.1.weight"] *= 1e4
    state["block2.convs.0.weight"] *= 1e-4
    torch.save(state, tmp_path / "ControlNetHED.pth")
    image = photo(64, 64)
    whole, half = (
        build("hed", weights=str(tmp_path), device="cpu", half=half).detect(image) for half in (False, True)
    )
    assert whole.std() > 2
    assert np.array_equal(whole, half)


def test_two_threads_make_the_same_maps_as_one(written: Written) -> None:
    detector = build("teed", weights=str(written("5_model.pth")), device="cpu")
    images = [photo(64, 64), photo(64, 128)]
    alone = [detector.detect(image) for image in images]
    found: dict[int, list[Pixels]] = {0: [], 1: []}

    def work(number: int) -> None:
        found[number] = [detector.detect(images[number]) for _ in range(6)]

    threads = [threading.Thread(target=work, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, maps in found.items():
        assert len(maps) == 6
        assert all(np.array_equal(one, alone[number]) for one in maps)


def test_through_the_front_door(written: Written) -> None:
    folder = str(written("ControlNetHED.pth"))
    image = photo(75, 90)
    found = preprocess(image, "hed", weights=folder, device="cpu")
    expected = build("hed", weights=folder, device="cpu").detect(image)
    assert found.size == (90, 75)
    assert np.array_equal(np.asarray(found), expected)
    assert found.info["controlkit"]["detector"] == "hed"


@pytest.mark.slow
def test_the_colours_of_regions_follow_the_seed(written: Written) -> None:
    folder = str(written("mobile_sam.pt"))
    options = {"model": "vit_t", "points": 2, "quality": 0.0, "stability": 0.0, "device": "cpu"}
    one, again, other = (
        build("sam", weights=folder, seed=seed, **options).detect(photo(64, 64)) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    none = build("sam", weights=folder, **{**options, "quality": 1.0}).detect(photo(64, 64))
    assert not none.any()
