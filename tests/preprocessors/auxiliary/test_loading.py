"""Weights of controlnet-aux's detectors: found anywhere, read whole or refused, held, freed and read anew."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from controlkit.checkpoints import hub
from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointUnsafe,
    DeviceMismatch,
    DownloadError,
    FileError,
    Incomplete,
    KindMismatch,
    NonFinite,
    ParameterError,
    ShapeMismatch,
)
from controlkit.preprocessors import build, detectors, free, held, keep, statefiles
from controlkit.preprocessors.auxiliary import Auxiliary
from controlkit.preprocessors.registry import BUILT_IN
from tests.preprocessors.auxiliary.conftest import Written
from tests.preprocessors.auxiliary.published import LAYOUTS, photo

KINDS = [kind for kind in BUILT_IN if issubclass(kind, Auxiliary)]
QUICK = {
    "teed": ("5_model.pth",),
    "anyline": ("Anyline/MTEED.pth",),
    "pidinet": ("table5_pidinet.pth",),
    "lineart-realistic": ("sk_model.pth",),
    "mlsd": ("mlsd_large_512_fp32.pth",),
}
IMAGE = photo(64, 64)


def teed(weights: Path, **options: Any) -> Any:
    return build("teed", weights=str(weights), device="cpu", **options)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_says_what_it_needs(kind: type[Auxiliary]) -> None:
    about = next(info for info in detectors() if info.name == kind.name)
    assert about.needs_weights
    assert about.extra == "controlkit[detectors]"
    options = {option.name: option for option in about.options}
    assert options["device"].default == "auto"
    assert all(option.meaning for option in about.options)
    made = build(kind.name)
    assert isinstance(made, Auxiliary)
    assert "/" in made.source()
    assert set(made.wanted()) <= set(LAYOUTS)


@pytest.mark.parametrize("name", QUICK)
def test_a_folder_and_a_file_of_another_name_with_the_network_closed(
    name: str, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(*QUICK[name])
    flat, renamed = tmp_path / "flat", tmp_path / "mine.pth"
    flat.mkdir()
    shutil.copy(folder / QUICK[name][0], flat / Path(QUICK[name][0]).name)
    shutil.copy(folder / QUICK[name][0], renamed)

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "socket", closed)
    maps = [build(name, weights=str(place), device="cpu").detect(IMAGE) for place in (folder, flat, renamed)]
    assert all(np.array_equal(each, maps[0]) for each in maps)


def test_only_the_files_that_the_options_need(written: Written, tmp_path: Path) -> None:
    folder = written("sk_model.pth", "sk_model2.pth")
    shutil.copy(folder / "sk_model2.pth", tmp_path)
    found = build("lineart-realistic", weights=str(tmp_path), coarse=True, device="cpu").detect(IMAGE)
    both = build("lineart-realistic", weights=str(folder), coarse=True, device="cpu").detect(IMAGE)
    assert np.array_equal(found, both)
    with pytest.raises(FileError, match=r"sk_model\.pth"):
        build("lineart-realistic", weights=str(tmp_path), device="cpu").detect(IMAGE)


def made(name: str, **options: Any) -> Auxiliary:
    detector = build(name, **options)
    assert isinstance(detector, Auxiliary)
    return detector


def test_parts_of_poses_and_sizes_of_networks_have_files_of_their_own() -> None:
    assert made("openpose").wanted() == ("body_pose_model.pth",)
    assert made("openpose", face=True).wanted() == ("body_pose_model.pth", "facenet.pth")
    assert len(made("openpose", face=True, hands=True).wanted()) == 3
    with pytest.raises(ParameterError, match="nothing to draw"):
        build("openpose", body=False)
    assert made("sam").source() == "ybelkada/segment-anything"
    assert (made("sam", model="vit_t").source(), made("sam", model="vit_t").wanted()) == (
        "dhkim2810/MobileSAM",
        ("mobile_sam.pt",),
    )
    assert "vit_l" in made("sam", model="vit_l").wanted()[0]


HUB = {
    "teed": ("fal-ai/teed", {}, ["5_model.pth"]),
    "anyline": ("TheMistoAI/MistoLine", {}, ["Anyline/MTEED.pth"]),
    "openpose": (
        "lllyasviel/Annotators",
        {"hands": True, "face": True},
        ["body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"],
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_the_hub_is_asked_for_these_files_of_one_commit(
    name: str, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, options, names = HUB[name]
    snapshot = tmp_path / "c0ffee"
    asked: list[tuple[str, str, str | None, bool]] = []

    def fetch(
        source: str, choose: Callable[..., str], *, revision: str | None, local_files_only: bool
    ) -> Any:
        chosen = choose([*names, "README.md"])
        asked.append((source, chosen, revision, local_files_only))
        target = snapshot / chosen
        target.parent.mkdir(parents=True, exist_ok=True)
        if name == "openpose":
            target.write_bytes(b"")
        else:
            shutil.copy(written(chosen) / chosen, target)
        return SimpleNamespace(folder=snapshot)

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    if name == "openpose":
        monkeypatch.setattr(type(made(name)), "assemble", refuse)
    detector = build(name, revision="v2", local_files_only=True, device="cpu", **options)
    if name == "openpose":
        with pytest.raises(CheckpointError):
            detector.detect(IMAGE)
    else:
        detector.detect(IMAGE)
        detector.detect(IMAGE)
    assert asked == [(repository, each, "v2" if i == 0 else "c0ffee", True) for i, each in enumerate(names)]


def refuse(*_: object) -> Any:
    raise CheckpointCorrupt("empty files")


def test_a_repository_without_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda source, choose, **_: choose(["README.md"]))
    with pytest.raises(DownloadError, match=r"no file 5_model\.pth"):
        build("teed", weights="some/where").detect(IMAGE)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch exploded",))


def truncated(path: Path, state: dict[str, Any]) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-2000])


def with_code(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, "bomb": Bomb()}, path)


def plain_pickle(path: Path, state: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, state: torch.save(change(state), path)


def nan(state: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(state))
    return {**state, first: torch.full_like(state[first], torch.nan)}


def one_less(state: dict[str, Any]) -> dict[str, Any]:
    return dict(list(state.items())[1:])


def one_larger(state: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(state))
    return {**state, first: torch.zeros(3, *state[first].shape)}


FAULTS: dict[str, tuple[Callable[[Path, dict[str, Any]], object], type[CheckpointError], str]] = {
    "cut off": (truncated, CheckpointCorrupt, "cut off|damaged|[Dd]ownload"),
    "code": (with_code, CheckpointUnsafe, "safetensors"),
    "a plain pickle": (plain_pickle, CheckpointError, r"torch\.save"),
    "another network": (changed(lambda state: {"a.weight": torch.ones(3)}), KindMismatch, "another network"),
    "one missing": (changed(one_less), Incomplete, "1 of [0-9]+ weights missing"),
    "one too many": (changed(lambda state: {**state, "more": torch.ones(1)}), KindMismatch, "more"),
    "another shape": (changed(one_larger), ShapeMismatch, "of shape"),
    "not finite": (changed(nan), NonFinite, "NaN"),
    "half precision, infinite": (
        changed(lambda state: {**state, next(iter(state)): next(iter(state.values())).half() / 0}),
        NonFinite,
        "infinity",
    ),
    "empty": (lambda path, state: path.write_bytes(b""), CheckpointError, "empty|0 bytes"),
    "a web page": (
        lambda path, state: path.write_bytes(b"<!DOCTYPE html><html>no</html>"),
        CheckpointError,
        "web page|HTML",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_refused(
    fault: str, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, error, said = FAULTS[fault]
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / "5_model.pth", torch.load(written("5_model.pth") / "5_model.pth", weights_only=True))
    with pytest.raises(error, match=said) as caught:
        teed(tmp_path).detect(IMAGE)
    assert "5_model.pth" in str(caught.value)
    assert held() == 0
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", QUICK)
def test_the_file_of_another_detector(name: str, written: Written) -> None:
    other = "table5_pidinet.pth" if name != "pidinet" else "5_model.pth"
    path = written(other) / other
    with pytest.raises(KindMismatch, match="another network"):
        build(name, weights=str(path), device="cpu").detect(IMAGE)


@pytest.mark.parametrize(
    ("weights", "error", "said"),
    [
        ("{empty}", FileError, r"without 5_model\.pth"),
        ("{empty}/nowhere.pth", FileError, "nothing there"),
        ("no hub id", FileError, "nothing there"),
        ("", ParameterError, "hub id"),
    ],
)
def test_weights_that_are_not_there(weights: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        build("teed", weights=weights.format(empty=tmp_path), device="cpu").detect(IMAGE)


def test_older_files_without_counters_and_safetensors_are_read(written: Written, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = written("mlsd_large_512_fp32.pth")
    state = torch.load(folder / "mlsd_large_512_fp32.pth", weights_only=True)
    fewer = {name: each for name, each in state.items() if not name.endswith("num_batches_tracked")}
    assert len(fewer) < len(state)
    torch.save(fewer, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    expected = build("mlsd", weights=str(folder), device="cpu").detect(IMAGE)
    for name in ("old.pth", "new.safetensors"):
        assert np.array_equal(
            build("mlsd", weights=str(tmp_path / name), device="cpu").detect(IMAGE), expected
        )


def test_answers_that_are_no_numbers_are_an_error(written: Written, tmp_path: Path) -> None:
    state = torch.load(written("5_model.pth") / "5_model.pth", weights_only=True)
    torch.save({name: each * 1e30 for name, each in state.items()}, tmp_path / "5_model.pth")
    with pytest.raises(NonFinite, match="no finite answer"):
        teed(tmp_path).detect(IMAGE)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read into networks."""
    seen: list[str] = []
    original = statefiles.filled
    import controlkit.preprocessors.teed as module

    def counted(network: Any, path: Path, *more: Any, **options: Any) -> Any:
        seen.append(path.name)
        return original(network, path, *more, **options)

    monkeypatch.setattr(module, "filled", counted)
    return seen


def test_a_network_is_read_once_and_freed(written: Written, reads: list[str]) -> None:
    folder = written("5_model.pth")
    for options in ({}, {"safe_steps": 0}, {"half": False}):
        teed(folder, **options).detect(IMAGE)
    assert reads == ["5_model.pth"]
    assert held() == 1
    assert free() == 1
    assert held() == 0
    teed(folder).detect(IMAGE)
    assert len(reads) == 2


def test_networks_are_held_in_bounded_number(written: Written, reads: list[str], tmp_path: Path) -> None:
    folder = written("5_model.pth")
    places = [tmp_path / f"{letter}.pth" for letter in "abc"]
    for place in places:
        shutil.copy(folder / "5_model.pth", place)
    try:
        keep(2)
        for place in (*places, places[2], places[0]):
            teed(place).detect(IMAGE)
        assert reads == ["a.pth", "b.pth", "c.pth", "a.pth"]
        assert held() == 2
        keep(0)
        assert held() == 0
        teed(places[0]).detect(IMAGE)
        assert held() == 0
        assert len(reads) == 5
    finally:
        keep(2)


def test_a_file_that_was_replaced_is_read_anew(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "5_model.pth"
    shutil.copy(written("5_model.pth") / "5_model.pth", path)
    first = teed(tmp_path, safe_steps=0).detect(IMAGE)
    state = torch.load(path, weights_only=True)
    torch.save({name: each * 0.5 for name, each in state.items()}, tmp_path / "next")
    os.replace(tmp_path / "next", path)
    second = teed(tmp_path, safe_steps=0).detect(IMAGE)
    assert not np.array_equal(first, second)
    free()
    assert np.array_equal(second, teed(tmp_path, safe_steps=0).detect(IMAGE))


@pytest.mark.parametrize("device", ["cuda:7", "meta", "cpu:1"])
def test_a_device_that_is_not_there(device: str, written: Written) -> None:
    with pytest.raises(DeviceMismatch, match="which is not here"):
        build("teed", weights=str(written("5_model.pth")), device=device).detect(IMAGE)


def test_cuda_where_there_is_none(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceMismatch, match="device='cpu'"):
        build("teed", weights=str(written("5_model.pth")), device="cuda").detect(IMAGE)
    with pytest.raises(ParameterError, match="auto, cpu"):
        build("teed", weights=str(written("5_model.pth")), device="warp").detect(IMAGE)
