"""Image encoders of the web UI's folders: which there are, which fits, and single files; no web UI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from controlkit import ParameterError
from controlkit.errors import ControlKitError
from controlkit.hosts.webui import encoders, files
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.adapters.style_adapter.test_style import style
from tests.adapters.uni_controlnet.builders import uni
from tests.hosts.webui import stand_in


@pytest.fixture(scope="module")
def large() -> Any:
    """CLIP ViT-L/14 but for its depth and its pictures' size."""
    config = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=1,
        num_attention_heads=16,
        image_size=28,
        patch_size=14,
        projection_dim=768,
        hidden_act="quick_gelu",
    )
    return tiny.randomize(transformers.CLIPVisionModelWithProjection(config), 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, large: Any) -> Path:
    """A folder with two encoders in transformers' layout, a single file, and things that are none."""
    folder = tmp_path_factory.mktemp("clip_vision")
    peers.encoder().save_pretrained(folder / "a-tiny")
    peers.encoder(projected=20).save_pretrained(folder / "b-wider")
    half = {name: value.half().contiguous() for name, value in large.state_dict().items()}
    save_file({**half, "text_model.extra": torch.zeros(2)}, folder / "clip_l.safetensors")
    save_file({"a": torch.zeros(2)}, folder / "other.safetensors")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("[1")
    (folder / "notes.txt").touch()
    (folder / "empty.pth").touch()
    return folder


def test_what_is_listed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a-tiny").mkdir()
    (tmp_path / "a-tiny" / "config.json").touch()
    names = ["a-tiny", "b-wider", "broken", "clip_l.safetensors", "empty.pth", "other.safetensors"]
    found = encoders.listed([folder, tmp_path, tmp_path / "absent"])
    assert list(found) == names, "the weights in a folder are no encoder of their own"
    assert found["a-tiny"] == folder / "a-tiny", "the first folder wins"


def test_what_modules_read() -> None:
    unet = tiny.unet()
    assert encoders.reads(peers.load(unet, "plain")) == ("pooled", 16)
    assert encoders.reads(peers.load(unet, "plus")) == ("penultimate", 24)
    assert encoders.reads(style()) == ("last", 24)
    assert encoders.reads(uni()) == ("pooled", 768)
    assert encoders.reads(tiny.controlnet()) is None


@pytest.mark.parametrize("name", [encoders.AUTOMATIC, ""])
def test_the_first_that_fits_is_found(folder: Path, name: str) -> None:
    unet = tiny.unet()
    assert encoders.encoder_of(name, peers.load(unet, "plain"), [folder]) == folder / "a-tiny"
    assert encoders.encoder_of(name, peers.load(unet, "plain", pooled=20), [folder]) == folder / "b-wider"
    assert encoders.encoder_of(name, style(), [folder]) == folder / "a-tiny"


def test_by_its_name_whatever_fits(folder: Path) -> None:
    assert encoders.encoder_of("b-wider", style(), [folder]) == folder / "b-wider"
    for name in ("../b-wider", str(folder / "b-wider"), "none such"):
        with pytest.raises(ParameterError, match="one of Automatic, a-tiny, b-wider"):
            encoders.encoder_of(name, style(), [folder])


def test_none_that_fits(folder: Path, tmp_path: Path) -> None:
    module = peers.load(tiny.unet(), "plain", pooled=99)
    with pytest.raises(ParameterError, match=r"6 image encoders, none of which fits.*99 wide \(pooled\)"):
        encoders.encoder_of(encoders.AUTOMATIC, module, [folder])
    with pytest.raises(ParameterError, match=r"found none.*Put the encoder"):
        encoders.encoder_of(encoders.AUTOMATIC, module, [tmp_path])


def test_a_single_file_is_the_same_model(folder: Path, large: Any) -> None:
    made = encoders.encoder_of(encoders.AUTOMATIC, uni(), [folder])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = made(pixels), large.half().float()(pixels)
    assert torch.equal(found.image_embeds, expected.image_embeds)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert encoders.encoder_of("clip_l.safetensors", uni(), [folder]) is made, "it is read once"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"visual_projection.weight": None}, "another layout"),
        ({"vision_model.embeddings.patch_embedding.weight": torch.zeros(1000, 3, 14, 14)}, "another layout"),
        ({"vision_model.post_layernorm.bias": None}, "without vision_model.post_layernorm.bias"),
    ],
)
def test_a_single_file_that_is_none_is_told(large: Any, tmp_path: Path, changes: Any, told: str) -> None:
    state = {name: value.half().contiguous() for name, value in large.state_dict().items()} | changes
    save_file({name: value for name, value in state.items() if value is not None}, tmp_path / "x.safetensors")
    with pytest.raises(ParameterError, match=told):
        encoders.encoder_of("x.safetensors", uni(), [tmp_path])


def test_a_file_that_cannot_be_read_is_told(folder: Path) -> None:
    with pytest.raises(ControlKitError):
        encoders.encoder_of("empty.pth", uni(), [folder])


def test_a_whole_clip_names_the_projection_beside_the_vision_model(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    whole = {"vision_config": {"hidden_size": 24, "projection_dim": 512}, "projection_dim": 16}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(whole))
    module = peers.load(tiny.unet(), "plain")
    assert encoders.encoder_of(encoders.AUTOMATIC, module, [tmp_path]) == tmp_path / "clip"


def test_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.modules(monkeypatch, tmp_path)
    own = tmp_path / "models" / "clip_vision"
    theirs = tmp_path / "extensions" / "sd-webui-controlnet" / "annotator" / "downloads" / "clip_vision"
    assert files.encoder_folders() == [own, theirs]
    stand_in.modules(monkeypatch, tmp_path, controlnet_annotator_models_path=str(tmp_path / "x"))
    assert files.encoder_folders() == [own, tmp_path / "x" / "clip_vision", theirs]


def test_where_control_files_lie_and_what_they_compute_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.modules(monkeypatch, tmp_path)
    assert files.folders() == [tmp_path / "models" / "ControlNet"]
    stand_in.modules(monkeypatch, tmp_path, controlkit_dir="a", controlnet_dir="b")
    assert files.folders() == [Path("a"), Path("b"), tmp_path / "models" / "ControlNet"]
    assert files.dtype() is torch.float32, "on a CPU"
