"""Finding the files: folders, shards, single files, what is no file, and the hub without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from controlkit.checkpoints import inspect, load
from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointError,
    ConfigError,
    ControlKitWarning,
    FileError,
    NotACheckpoint,
    ParameterError,
    Unsupported,
)
from tests.checkpoints.files import adapter, header, pack, state, write

STEM = "diffusion_pytorch_model"
CONTENTS: dict[str, tuple[bytes, type[Exception], str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        NotACheckpoint,
        "git lfs pull",
    ),
    "html": (b"<!DOCTYPE html><html>Sign in</html>", NotACheckpoint, "web page"),
    "html_late": (b"\n  <html><body>", NotACheckpoint, "web page"),
    "json": (b'{"error": "Repository not found"}', NotACheckpoint, "JSON"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), NotACheckpoint, "PNG"),
    "numpy": (b"\x93NUMPY" + bytes(64), NotACheckpoint, "NumPy"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), NotACheckpoint, "Unpack"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), Unsupported, "GGUF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), Unsupported, "HDF5"),
    "tar": (b"a" * 257 + b"ustar" + bytes(64), Unsupported, "tar"),
    "msgpack": (b"\x81\xa6params" + bytes(64), Unsupported, "MessagePack"),
    "onnx": (b"\x08\x07\x12\x07pytorch" + bytes(64), Unsupported, "ONNX"),
    "zeros": (bytes(512), CheckpointError, "begins with"),
    "noise": (b"\xc3\x28\xa0\xa1 nothing", CheckpointError, "begins with"),
}


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".Safetensors", ""])
def test_what_is_no_checkpoint_is_called_what_it_is(case: str, suffix: str, tmp_path: Path) -> None:
    content, error, words = CONTENTS[case]
    with pytest.raises(error, match=words):
        load(write(tmp_path / f"x{suffix}", content))


def test_what_is_no_file_never_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "pipe.safetensors": "pipe",
        "dangling.safetensors": "no such file",
        "empty": "no weight file",
        "missing.safetensors": "no such file",
        "a/b/c": "no such file",
        "zero\0byte": "no such file",
    }.items():
        with pytest.raises(FileError, match=words):
            load(tmp_path / name)
    with pytest.raises(FileError):
        load("/dev/zero")
    with pytest.raises(ParameterError, match="state_dict"):
        load(adapter())
    with pytest.raises(FileError, match="device"):
        load("/dev/null")


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


def sharded(folder: Path) -> dict[str, str]:
    """Two shards and their index; gives the index's map."""
    from controlkit.checkpoints.save import _serialise

    adapter().save(folder)
    (folder / f"{STEM}.safetensors").unlink()
    tensors, listed = state(), {}
    for number, part in enumerate((list(tensors)[:5], list(tensors)[5:]), start=1):
        name = f"{STEM}-0000{number}-of-00002.safetensors"
        write(folder / name, b"".join(map(bytes, _serialise({key: tensors[key] for key in part}))))
        listed |= dict.fromkeys(part, name)
    write(folder / f"{STEM}.safetensors.index.json", json.dumps({"weight_map": listed}).encode())
    return listed


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    sharded(tmp_path)
    module = load(tmp_path)
    assert all(torch.equal(state()[name], tensor) for name, tensor in module.state_dict().items())
    assert module.digest is not None
    assert inspect(tmp_path).keys == 10


@pytest.mark.parametrize(
    ("shard", "error"),
    [
        ("../secret.safetensors", CheckpointCorrupt),
        ("/etc/passwd", CheckpointCorrupt),
        ("..", CheckpointCorrupt),
        ("a/../../b", CheckpointCorrupt),
        ("link.safetensors", CheckpointCorrupt),
        ("missing.safetensors", FileError),
        ("", CheckpointCorrupt),
        ("zero\0", CheckpointCorrupt),
    ],
)
def test_an_index_cannot_point_elsewhere(shard: str, error: type[Exception], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    listed = sharded(folder)
    write(tmp_path / "secret.safetensors", pack(header({}), b""))
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    listed[next(iter(listed))] = shard
    write(folder / f"{STEM}.safetensors.index.json", json.dumps({"weight_map": listed}).encode())
    with pytest.raises(error, match="shard") as caught:
        load(folder)
    assert caught.value.code == "CK-L33"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "index", [b"", b"[]", b'{"weight_map": 1}', b'{"weight_map": {"a": 1}}', b'{"weight_map": {}}']
)
def test_a_malformed_index_is_refused(index: bytes, tmp_path: Path) -> None:
    sharded(tmp_path)
    write(tmp_path / f"{STEM}.safetensors.index.json", index)
    with pytest.raises(ConfigError):
        load(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    listed = sharded(tmp_path)
    first, second = sorted(set(listed.values()))
    write(tmp_path / second, (tmp_path / first).read_bytes())
    with pytest.raises(CheckpointCorrupt, match="another shard"):
        load(tmp_path)


class Hub:
    """A hub of one repository, in place of the network."""

    def __init__(self, folder: Path, cache: Path, sha256: str | None = None) -> None:
        self.folder, self.cache, self.sha256 = folder, cache, sha256
        self.asked: list[str | None] = []
        self.fetched: list[tuple[str, str]] = []
        self.error: Exception | None = None

    def model_info(self, repository: str, *, revision: str | None, files_metadata: bool) -> Any:
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
    with pytest.raises(CheckpointCorrupt, match="as the hub lists"):
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
