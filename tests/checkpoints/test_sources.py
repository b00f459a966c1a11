"""Finding the files: folders, shards, single files, what is no file, and the hub without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from controlkit.checkpoints import inspect, load
from controlkit.errors import (
    CheckpointCorrupt,
    ConfigError,
    ControlKitWarning,
    FileError,
    ParameterError,
)
from tests.checkpoints.faults_places import sharded
from tests.checkpoints.files import adapter, state, write

STEM = "diffusion_pytorch_model"


def test_what_is_no_source_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no weight file"):
        load(tmp_path / "empty")
    with pytest.raises(FileError, match="not a hub id"):
        load(tmp_path / "a/b/c")
    with pytest.raises(ParameterError, match="state_dict"):
        load(adapter())


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bin"), f"{STEM}.safetensors"),
        ((f"{STEM}.fp16.safetensors", f"{STEM}.bin"), f"{STEM}.fp16.safetensors"),
        ((f"{STEM}.bin", "pytorch_lora_weights.txt"), f"{STEM}.bin"),
        (("anything.safetensors", f"{STEM}.bin"), "anything.safetensors"),
        (("model.pth",), "model.pth"),
    ],
)
def test_the_best_file_of_a_folder_is_chosen(names: tuple[str, ...], chosen: str, tmp_path: Path) -> None:
    tensors = state()
    folder = adapter().save(tmp_path / "made")
    content = (folder / f"{STEM}.safetensors").read_bytes()
    (folder / f"{STEM}.safetensors").unlink()
    for name in names:
        if name != chosen:
            write(folder / name, b"not this one")
        elif name.endswith(".safetensors"):
            write(folder / name, content)
        else:
            torch.save(tensors, folder / name)
    assert load(folder).kind == "t2i-adapter"
    assert load(tmp_path, subfolder="made", weight_name=chosen).kind == "t2i-adapter"
    with pytest.raises(FileError, match="no file 'x'"):
        load(folder, weight_name="x")
    with pytest.raises(FileError, match="no folder"):
        load(folder, subfolder="other")


def test_a_pipeline_folder_asks_for_its_subfolder(tmp_path: Path) -> None:
    write(tmp_path / "model_index.json", b"{}")
    with pytest.raises(FileError, match=r"whole pipeline.*subfolder"):
        load(tmp_path)


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    sharded(tmp_path)
    module = load(tmp_path)
    assert all(torch.equal(state()[name], tensor) for name, tensor in module.state_dict().items())
    assert module.digest is not None
    assert inspect(tmp_path).keys == 10


@pytest.mark.parametrize(
    "index", [b"", b"[]", b'{"weight_map": 1}', b'{"weight_map": {"a": 1}}', b'{"weight_map": {}}']
)
def test_a_malformed_index_is_refused(index: bytes, tmp_path: Path) -> None:
    sharded(tmp_path)
    write(tmp_path / f"{STEM}.safetensors.index.json", index)
    with pytest.raises(ConfigError):
        load(tmp_path)


class Hub:
    """A hub of one repository, in place of the network."""

    def __init__(self, folder: Path, cache: Path, sha256: str | None = None) -> None:
        self.folder, self.cache, self.sha256 = folder, cache, sha256
        self.asked: list[str | None] = []
        self.fetched: list[tuple[str, str]] = []
        self.error: Exception | None = None

    def model_info(
        self, repository: str, *, revision: str | None, files_metadata: bool, timeout: float
    ) -> Any:
        self.asked.append(revision)
        if self.error is not None:
            raise self.error
        files = [
            path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()
        ]
        lfs = {"sha256": self.sha256} if self.sha256 else None
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=n, lfs=lfs) for n in files])

    def parse_safetensors_file_metadata(self, repository: str, name: str, *, revision: str) -> Any:
        content = (self.folder / name).read_bytes()
        listed = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        listed.pop("__metadata__")
        return SimpleNamespace(tensors={key: SimpleNamespace(**value) for key, value in listed.items()})

    def download(self, repository: str, name: str, *, revision: str) -> str:
        self.fetched.append((name, revision))
        path = self.cache / "models--a--b" / "snapshots" / revision / name
        blob = self.cache / "models--a--b" / "blobs" / name.replace("/", "--")
        for made in (path, blob):
            made.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes((self.folder / name).read_bytes())
        if not path.exists():
            path.symlink_to(blob)
        return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    made = Hub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
    return made


def test_hub_files_come_from_one_commit(hub: Hub) -> None:
    adapter().save(hub.folder)
    write(hub.folder / f"{STEM}.bin", b"not this one")
    module = load("someone/t2i-depth", revision="main")
    assert hub.asked == ["main"]
    assert hub.fetched == [(f"{STEM}.safetensors", "c0ffee"), ("config.json", "c0ffee")]
    assert (module.source, module.condition) == ("someone/t2i-depth", "depth")


def test_hub_subfolder_and_shards(hub: Hub) -> None:
    sharded(hub.folder / "inner")
    assert load("someone/thing", subfolder="inner").kind == "t2i-adapter"
    assert len(hub.fetched) == 4
    with pytest.raises(FileError, match="no weight file"):
        load("someone/thing")


@pytest.mark.parametrize("subfolder", [None, "inner"])
def test_inspect_fetches_no_weights(hub: Hub, subfolder: str | None) -> None:
    folder = adapter().save(hub.folder / (subfolder or ""))
    info = inspect("someone/thing", subfolder=subfolder)
    assert (info.kind, info.keys, info.dtype) == ("t2i-adapter", 10, "float32")
    assert info.config["channels"] == [8, 8]
    assert [name.rpartition("/")[2] for name, _ in hub.fetched] == ["config.json"]
    (folder / "config.json").unlink()
    assert inspect("someone/thing", subfolder=subfolder).config["channels"] == [8, 8]


def test_hub_digest_is_compared(hub: Hub) -> None:
    adapter().save(hub.folder)
    hub.sha256 = "0" * 64
    with pytest.raises(CheckpointCorrupt, match=r"SHA-256 .*; needed 0000"):
        load("someone/thing")


@pytest.mark.parametrize(
    ("status", "words"), [(401, "login"), (404, "no such"), (429, "too many"), (403, "access")]
)
def test_hub_refusals_are_explained(hub: Hub, status: int, words: str) -> None:
    hub.error = RuntimeError("no")
    hub.error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    with pytest.raises(FileError, match=words) as caught:
        load("someone/thing")
    assert caught.value.code == "CK-L36"


def test_without_a_connection_the_cache_is_used(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = adapter().save(tmp_path / "snapshot")
    hub.error = ConnectionError("unreachable")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    with pytest.warns(ControlKitWarning, match="did not answer"):
        load("someone/thing")
    load("someone/thing", local_files_only=True)

    def nothing(*args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    with pytest.raises(FileError, match="no copy in the cache"):
        load("someone/thing")
