"""``controlkit convert``: there and back, refusals before anything is read or written, what it prints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

import controlkit as ck
from controlkit.adapters.t2i_adapter import T2IAdapter
from tests import tiny
from tests.checkpoints.files import state
from tests.cli.conftest import Command

WEIGHTS = "diffusion_pytorch_model.safetensors"


def adapter() -> T2IAdapter:
    """A small one, whose levels its original names tell apart by their widths."""
    return tiny.t2i_adapter("sd1", channels=(8, 16))


def same(first: Path, second: Path) -> bool:
    """Whether two places hold the same weights."""
    one, other = ck.load(first).state_dict(), ck.load(second).state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_from_a_pickle_to_a_folder_and_back(command: Command, tmp_path: Path) -> None:
    torch.save(adapter().original_state(), tmp_path / "t2i_depth.pth")
    done = command("convert", "t2i_depth.pth", "folder")
    assert done.code == 0, done.err
    assert {path.name for path in Path("folder").iterdir()} == {"README.md", "config.json", WEIGHTS}
    assert same(tmp_path / "t2i_depth.pth", Path("folder"))
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "t2i_depth.pth" in card
    assert hashlib.sha256((tmp_path / "t2i_depth.pth").read_bytes()).hexdigest() in card
    assert "depth" in card
    done = command("convert", "folder", "back.safetensors", "--json")
    assert done.code == 0, done.err
    assert done.json["layout"] == "original"
    assert done.json["sha256"] == hashlib.sha256(Path("back.safetensors").read_bytes()).hexdigest()
    assert same(Path("back.safetensors"), Path("folder"))
    assert ck.inspect("back.safetensors").layout == "t2i-original"


def test_every_loadable_layout_of_a_controlnet(command: Command, tmp_path: Path) -> None:
    net = tiny.controlnet(block_out_channels=(32, 64, 64, 64), norm_num_groups=32)
    net.save(tmp_path / "diffusers")
    net.save(tmp_path / "original.safetensors", layout="original")
    (tmp_path / "heads.json").write_text(json.dumps({"num_heads": 2}))
    done = command("convert", "original.safetensors", "out", "--config", "heads.json", "--json")
    assert done.code == 0, done.err
    assert (done.json["kind"], done.json["base"], done.json["layout"]) == ("controlnet", "sd1", "diffusers")
    assert done.json["source_sha256"] == hashlib.sha256(Path("original.safetensors").read_bytes()).hexdigest()
    assert same(Path("out"), Path("diffusers"))
    without = command("convert", "original.safetensors", "other")
    assert without.code == 1
    assert "heads" in without.err
    assert not Path("other").exists()


def test_precision_and_kind(command: Command, tmp_path: Path) -> None:
    adapter().save(tmp_path / "a")
    done = command("convert", "a", "b", "--dtype", "float16", "--kind", "t2i-adapter", "--strict", "--json")
    assert done.code == 0, done.err
    assert done.json["dtype"] == "float16"
    assert done.json["bytes"] == (tmp_path / "b" / WEIGHTS).stat().st_size
    assert ck.inspect(tmp_path / "b").dtype == "float16"
    table = command("convert", "a", "c").out
    assert "t2i-adapter" in table
    assert "sha256" in table


def test_existing_files_are_kept_unless_forced(command: Command, tmp_path: Path) -> None:
    adapter().save(tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "file.safetensors").write_text("mine")
    (tmp_path / "empty").mkdir()
    for target in ("full", "file.safetensors"):
        done = command("convert", "a", target)
        assert done.code == 1
        assert "--force" in done.err
        assert done.err.count("\n") == 1
    assert (tmp_path / "file.safetensors").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert command("convert", "a", "empty").code == 0
    for target in ("full", "file.safetensors"):
        assert command("convert", "a", target, "--force").code == 0
        assert same(tmp_path / target, tmp_path / "a")
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"
    assert command("convert", "a", "a", "--force", "--dtype", "bfloat16").code == 0
    assert ck.inspect(tmp_path / "a").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("absent.pth", "out"), 1, "no such file"),
        (("a", "out", "--layout", "comfy"), 2, "diffusers or original"),
        (("a", "out", "--layout", "original"), 2, "ends in .safetensors"),
        (("a", "out.safetensors", "--layout", "diffusers"), 2, "a folder"),
        (("a", "out", "--dtype", "int8"), 2, "float32, float16, bfloat16"),
        (("a", "out", "--kind", "controlnet"), 1, "t2i-adapter"),
        (("a", "out", "--sha256", "0" * 64), 1, "sha-256"),
        (("a", "out", "--sha256", "zero"), 2, "64 hexadecimal"),
        (("extra.safetensors", "out", "--strict"), 1, "belong to nothing"),
        (("lora.safetensors", "out"), 1, "load_lora_weights"),
        (("a", "file"), 1, "a file; needed a folder"),
        (("a", "folder.safetensors"), 1, "a folder; needed a file"),
        (("a",), 2, "target"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    from tests.checkpoints.faults_weights import packed

    adapter().save(tmp_path / "a")
    packed(tmp_path / "extra.safetensors", {**adapter().state_dict(), "surplus": torch.zeros(1)})
    packed(tmp_path / "lora.safetensors", {"lora_unet_mid.lora_down.weight": torch.zeros(4, 768)})
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    done = command("convert", *arguments)
    assert done.code == code, done.err
    assert says.lower() in done.err.lower()
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert not (tmp_path / "out").exists()


def test_notes_are_told(command: Command, tmp_path: Path) -> None:
    torch.save({"state_dict": state(), "epoch": 3}, tmp_path / "x.ckpt")
    done = command("convert", "x.ckpt", "out", "--json")
    assert done.code == 0
    assert "note: x.ckpt: weights taken from the entry 'state_dict'" in done.err
    assert len(done.json["notes"]) == 1


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    from controlkit.checkpoints.save import save_module

    told: list[tuple[int, int]] = []
    module = ck.load(adapter().save(tmp_path / "a"), progress=lambda *values: told.append(values))
    size = sum(part.nbytes for part in module.state_dict().values())
    assert told[-1] == (size, size)
    assert told == sorted(told)
    told.clear()
    save_module(module, tmp_path / "b", progress=lambda *values: told.append(values))
    assert told[-1] == (size, size)
    assert told == sorted(told)
