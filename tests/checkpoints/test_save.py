"""Saving: what is written reads back the same, and a failure leaves what was there before."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from controlkit.checkpoints import load
from controlkit.errors import SaveError
from tests.checkpoints.files import adapter

STEM = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_reads_back_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    module = adapter().to(dtype)
    again = load(module.save(tmp_path / "new" / "folder"))
    assert again.config == module.config  # type: ignore[attr-defined]
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["README.md", "config.json", STEM]


def test_other_memory_layouts_are_saved_as_their_values(tmp_path: Path) -> None:
    module = adapter().to(memory_format=torch.channels_last)
    again = load(module.save(tmp_path))
    assert all(torch.equal(again.state_dict()[k], v) for k, v in module.state_dict().items())
    assert all(part.is_contiguous() for part in again.parameters())


def _full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def _unmovable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)


@pytest.mark.parametrize("fault", [_full, _unmovable])
def test_a_failure_leaves_the_old_files(
    fault: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fault(tmp_path, monkeypatch)  # type: ignore[operator]
    with pytest.raises(SaveError, match="intact") as caught:
        adapter().half().save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert isinstance(caught.value, OSError)


def test_a_file_too_big_for_its_disk(tmp_path: Path) -> None:
    adapter().save(tmp_path)
    before = (tmp_path / STEM).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SaveError, match="bytes of room"):
            adapter().save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / STEM).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", STEM]


def test_what_a_killed_writer_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    fresh, stale = tmp_path / f".{STEM}.new.tmp", tmp_path / f".{STEM}.old.tmp"
    other = tmp_path / ".other.old.tmp"
    for path in (fresh, stale, other):
        path.write_bytes(b"x")
    for path in (stale, other):
        os.utime(path, (1, 1))
    adapter().save(tmp_path)
    assert (fresh.exists(), stale.exists(), other.exists()) == (True, False, True)


def test_a_place_that_is_no_folder_and_weights_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SaveError):
            adapter().save(folder)
    with pytest.raises(SaveError, match="meta"):
        adapter().to("meta").save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
