"""Where networks come from, what is refused and how, and which are held."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file

from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointError,
    ControlKitError,
    DeviceMismatch,
    DownloadError,
    FileError,
    Incomplete,
    KindMismatch,
    MissingExtra,
    NonFinite,
    ParameterError,
)
from controlkit.preprocessors import build, detectors, free, held, keep, preprocess
from controlkit.preprocessors.networks import Networked
from controlkit.preprocessors.registry import BUILT_IN
from tests.preprocessors.pretrained import small

Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    free()
    yield
    keep(2)
    free()


NAMES = [name for name in small.BUILDERS if name != "people"]
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
WEIGHTS = "model.safetensors"


def run(name: str, weights: object, **options: Any) -> Any:
    if name == "vitpose":
        options.setdefault("people", "")
    return build(name, weights=str(weights), **options).detect(PICTURE)


def change(place: Path, edited: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(place / WEIGHTS)
    edited(tensors)
    save_file(tensors, place / WEIGHTS, {"format": "pt"})


def without_processor(place: Path) -> None:
    for file in ("preprocessor_config.json", "processor_config.json"):
        (place / file).unlink(missing_ok=True)


def truncated(place: Path) -> None:
    content = (place / WEIGHTS).read_bytes()
    (place / WEIGHTS).write_bytes(content[: len(content) * 2 // 3])


def without_weights(place: Path) -> None:
    (place / WEIGHTS).unlink()


def without_config(place: Path) -> None:
    (place / "config.json").unlink()


def no_json(place: Path) -> None:
    (place / "config.json").write_text('{"model_type": ')


def without_some(place: Path) -> None:
    change(place, lambda tensors: [tensors.pop(name) for name in sorted(tensors)[-2:]] and None)


def with_nan(place: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if tensors[name].is_floating_point())
        tensors[name].view(-1)[0] = float("nan")

    change(place, spoil)


def of_another_shape(place: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if tensors[name].ndim > 1)
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    change(place, spoil)


def running_code(place: Path) -> None:
    small.edit(
        place / "config.json",
        model_type="something-new",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForDepthEstimation": "evil.Model"},
    )
    (place / "evil.py").write_text(f"open({str(place / 'ran')!r}, 'w').close()\n")


FAULTS: dict[str, tuple[Callable[[Path], None], type[ControlKitError]]] = {
    "no processor": (without_processor, FileError),
    "truncated": (truncated, CheckpointCorrupt),
    "no weights": (without_weights, FileError),
    "no config": (without_config, CheckpointError),
    "no json": (no_json, FileError),
    "some missing": (without_some, Incomplete),
    "NaN": (with_nan, NonFinite),
    "another shape": (of_another_shape, CheckpointError),
    "code": (running_code, CheckpointError),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["depth-anything", "vitpose"])
def test_faults_are_refused(spoilt: Folder, name: str, fault: str) -> None:
    spoil, expected = FAULTS[fault]
    place = spoilt(name)
    spoil(place)
    with pytest.raises(expected) as caught:
        run(name, place)
    assert str(place) in str(caught.value)
    assert isinstance(caught.value, CheckpointError)
    assert held() == 0
    assert not (place / "ran").exists()


UNUSED = {
    "depth-anything": "fusion_stage.layers.0.residual_layer1.",
    "dpt": "fusion_stage.layers.0.residual_layer1.",
    "zoedepth": "fusion_stage.layers.0.residual_layer1.",
    "upernet": ".num_batches_tracked",
    "mask2former": "criterion.",
    "oneformer": "criterion.",
}


@pytest.mark.parametrize("name", UNUSED)
def test_weights_that_published_files_lack_change_nothing(spoilt: Folder, name: str) -> None:
    place = spoilt(name)
    whole = run(name, place)

    def lack(tensors: dict[str, torch.Tensor]) -> None:
        gone = [key for key in tensors if UNUSED[name] in key]
        assert gone
        for key in gone:
            del tensors[key]

    change(place, lack)
    torch.manual_seed(1)
    assert np.array_equal(run(name, place), whole)


def test_a_video_network_of_sam2_is_read_for_pictures(spoilt: Folder) -> None:
    place = spoilt("sam2")
    options = {"quality": 0.0, "stability": 0.0, "points": 8, "alike": 0.9}
    whole = run("sam2", place, **options)
    small.edit(place / "config.json", model_type="sam2_video")  # as facebook/sam2.1-hiera-tiny says it
    found = run("sam2", place, **options)
    assert np.array_equal(found, whole)
    assert found.any()


@pytest.mark.parametrize("name", NAMES)
def test_another_kind_of_folder_is_refused(folder: Folder, name: str) -> None:
    other = "upernet" if name == "segformer" else "segformer"
    with pytest.raises(KindMismatch, match=f"network of type '{other}'"):
        run(name, folder(other))


def test_networks_whose_answers_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    metric = small.save(tmp_path / "metric", "depth-anything", depth_estimation_type="metric", max_depth=20)
    with pytest.raises(KindMismatch, match="metric depth"):
        run("depth-anything", metric)
    joints = small.save(tmp_path / "joints", "vitpose", joints=14)
    with pytest.raises(KindMismatch, match="14 points"):
        run("vitpose", joints)
    bicycles = small.save(tmp_path / "bicycles", "people", names={0: "bicycle"})
    with pytest.raises(KindMismatch, match="labels without 'person'"):
        run("vitpose", small.save(tmp_path / "vitpose", "vitpose"), people=str(bicycles))
    streets = small.save(tmp_path / "streets", "segformer", names={0: "road", 1: "sidewalk", 2: "building"})
    with pytest.raises(KindMismatch, match="3 labels"):
        run("segformer", streets)
    assert held() == 0
    plain = run("segformer", streets, palette="plain")
    assert {tuple(one) for one in plain.reshape(-1, 3).tolist()} <= {(128, 0, 0), (0, 128, 0), (128, 128, 0)}


@pytest.mark.parametrize("name", ["depth-anything", "mask2former", "sam2", "vitpose"])
def test_an_answer_that_is_not_finite_is_an_error(spoilt: Folder, name: str) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> None:
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensors[key] = tensor * 1e30

    place = spoilt(name)
    change(place, grow)
    with pytest.raises(NonFinite, match="NaN or infinity"):
        run(name, place)


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_is_asked_as_told(folder: Folder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any, Any, Any]] = []
    for kind in (tf.AutoConfig, tf.AutoImageProcessor, tf.AutoTokenizer, tf.PreTrainedModel):
        original = kind.from_pretrained.__func__

        def record(cls: Any, where: str, *given: Any, original: Any = original, **more: Any) -> Any:
            if where == "some/thing":
                asked.append(
                    (where, more.get("revision"), more.get("local_files_only"), more.get("trust_remote_code"))
                )
            return original(cls, str(folder(name)) if where == "some/thing" else where, *given, **more)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(record))
    assert run(name, "some/thing", revision="v2", local_files_only=True).shape[:2] == PICTURE.shape[:2]
    assert len(asked) >= 3
    assert {each[:3] for each in asked} == {("some/thing", "v2", True)}
    assert {each[3] for each in asked} <= {False, None}
    assert False in {each[3] for each in asked}


@pytest.mark.parametrize("name", ["depth-anything", "oneformer", "vitpose"])
@pytest.mark.parametrize("local", [False, True])
def test_no_repository_and_no_connection_is_an_error(
    name: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match="nobody-here/nothing"):
        run(name, "nobody-here/nothing", local_files_only=local)


PLACES: dict[str, tuple[Callable[[Path], object], type[ControlKitError]]] = {
    "nothing": (lambda place: "", ParameterError),
    "no such folder": (lambda place: place / "absent", FileError),
    "a file": (lambda place: place / WEIGHTS, FileError),
    "no such user": (lambda place: "~nobody-of-this-name/x", FileError),
    "no name at all": (lambda place: "a\0b", FileError),
    "one word": (lambda place: "segformer-b0", FileError),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_that_hold_no_network(folder: Folder, case: str) -> None:
    place, expected = PLACES[case]
    with pytest.raises(expected):
        run("segformer", place(folder("segformer")))


def test_a_home_folder_is_found(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder("segformer").parent))
    assert run("segformer", f"~/{folder('segformer').name}").shape == PICTURE.shape


def test_networks_are_held_replaced_and_freed(spoilt: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    place, reads = spoilt("segformer"), []
    original = tf.SegformerForSemanticSegmentation.from_pretrained.__func__

    def counted(cls: Any, *given: Any, **more: Any) -> Any:
        reads.append(given)
        return original(cls, *given, **more)

    monkeypatch.setattr(tf.SegformerForSemanticSegmentation, "from_pretrained", classmethod(counted))
    first = run("segformer", place)
    run("segformer", place, palette="plain")
    assert (len(reads), held()) == (1, 1)
    assert free() == 1
    assert np.array_equal(run("segformer", place), first)
    assert len(reads) == 2
    turned = {"decode_head.classifier.weight"}
    change(place, lambda tensors: tensors.update({key: -tensors[key] for key in turned}))
    assert not np.array_equal(run("segformer", place), first)
    assert len(reads) == 3
    keep(0)
    assert held() == 0
    run("segformer", place)
    run("segformer", place)
    assert (len(reads), held()) == (5, 0)


def test_another_network_of_persons_is_another_network(folder: Folder) -> None:
    run("vitpose", folder("vitpose"))
    run("vitpose", folder("vitpose"), people=str(folder("people")))
    assert held() == 2


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda:99", DeviceMismatch), ("toaster", ParameterError), ("mps:7", DeviceMismatch)],
)
def test_devices_that_are_not_here(folder: Folder, device: str, expected: type[ControlKitError]) -> None:
    with pytest.raises(expected):
        run("segformer", folder("segformer"), device=device)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers", "depth-anything"),
        ("torchvision", "segformer"),
        ("scipy", "mask2former"),
        ("scipy", "oneformer"),
        ("scipy", "vitpose"),
        ("cv2", "vitpose"),
    ],
)
def test_a_missing_package_is_named(
    folder: Folder, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match="pip install"):
        run(name, folder(name))


def test_detectors_are_listed_with_what_they_need() -> None:
    about = {info.name: info for info in detectors()}
    for name in NAMES:
        assert about[name].needs_weights
        assert about[name].extra.startswith("transformers torchvision")
        kind = next(kind for kind in BUILT_IN if kind.name == name)
        assert issubclass(kind, Networked)
        assert "Source:" in str(kind.__doc__)
    assert {about[name].family for name in NAMES} == {"depth", "seg", "regions", "openpose"}


def test_making_a_detector_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from controlkit.preprocessors import build, detectors\n"
        f"for name in {NAMES!r}: build(name)\n"
        "detectors()\n"
        "print(sorted({'torch', 'transformers', 'torchvision', 'scipy', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_preprocess_takes_a_folder_and_many_pictures(folder: Folder) -> None:
    pictures = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[:, :40]), Image.fromarray(PICTURE[::-1])]
    found = preprocess(pictures, "segformer", weights=str(folder("segformer")))
    assert [one.size for one in found] == [one.size for one in pictures]
    assert found[0].info["controlkit"]["options"]["weights"] == str(folder("segformer"))
