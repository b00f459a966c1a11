"""Whole models in one checkpoint file: the pictures that their parts draw, and clear words for the rest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import controlkit as ck
from controlkit.recipes import single
from tests import original, tiny

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has nothing and cannot be reached."""
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def pipe_of(family: Any, **parts: Any) -> Any:
    if family == "filling":
        cls: Any = diffusers.StableDiffusionInpaintPipeline
        return tiny.pipeline(cls=cls, unet=tiny.unet(in_channels=9), **parts)
    return tiny.pipeline(family, **parts)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole models in the original layout, and their configs beside them."""
    folder = tmp_path_factory.mktemp("models")
    original.save(pipe_of("sd1"), folder / "sd1.safetensors")
    original.save(pipe_of("sd1"), folder / "pickled.ckpt")
    original.save(pipe_of("filling"), folder / "filling.safetensors")
    original.save(pipe_of("sd2"), folder / "sd2.safetensors", "sd2")
    original.save(pipe_of("sdxl"), folder / "sdxl.safetensors", "sdxl")
    tiny.controlnet().save(folder / "net")
    (folder / "broken.safetensors").write_bytes(b"\x00" * 64)
    return folder


def drawn(model: Any, models: Path | None = None, pipe: Any = None, **changes: Any) -> np.ndarray:
    given = {"prompt": "a house", "steps": 2, "width": 64, "height": 64, "seed": 5, "model": model}
    return np.asarray(ck.run({**given, **changes}, pipe, models=models)[0])


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sd1.safetensors", "sd1"),
        ("pickled.ckpt", "sd1"),
        ("sd2.safetensors", "sd2"),
        ("sdxl.safetensors", "sdxl"),
    ],
)
def test_one_file_draws_what_its_parts_draw(models: Path, name: str, family: Any) -> None:
    made = drawn(f"file:{name}", models)
    assert np.array_equal(made, drawn("embedded:base", pipe=pipe_of(family)))
    assert made.std() > 0


def test_one_file_that_fills_masks(models: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    init = {"image": Image.new("RGB", (64, 64), "red"), "mask": mask, "strength": 1.0}
    made = drawn("file:filling.safetensors", models, init=init)
    assert np.array_equal(made, drawn("embedded:base", pipe=pipe_of("filling"), init=init))
    with pytest.raises(ck.RecipeError, match="9 channels"):
        drawn("file:filling.safetensors", models)


def test_what_files_are_is_told_from_their_headers(models: Path) -> None:
    assert single.base_of(models / "sd1.safetensors") == ("sd1", False)
    assert single.base_of(models / "pickled.ckpt") == ("sd1", False)
    assert single.base_of(models / "filling.safetensors") == ("sd1", True)
    assert single.base_of(models / "sd2.safetensors") == ("sd2", False)
    assert single.base_of(models / "sdxl.safetensors") == ("sdxl", False)
    assert single.base_of(models / "broken.safetensors") is None
    assert single.base_of(models / "absent.safetensors") is None
    assert single.base_of(models / "net" / "diffusion_pytorch_model.safetensors") is None
    assert single.side_of(models / "sd1.safetensors") == 64


def test_the_configs_may_lie_elsewhere(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "sd1.safetensors", tmp_path / "alone.safetensors")
    shutil.copytree(models / "sd1", tmp_path / "configs" / "sd1")
    made = drawn({"source": "file:alone.safetensors", "config": "file:configs/sd1"}, tmp_path)
    assert np.array_equal(made, drawn("file:sd1.safetensors", models))
    half = drawn(
        {"source": "file:alone.safetensors", "config": "file:configs/sd1", "dtype": "bfloat16"}, tmp_path
    )
    assert not np.array_equal(made, half)


def test_the_hubs_cache_has_the_configs_of_base_models(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, bool]] = []

    def cached(repository: str, *, local_files_only: bool, **_: Any) -> str:
        asked.append((repository, local_files_only))
        return str(models / "sdxl")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    shutil.copy(models / "sdxl.safetensors", tmp_path / "alone.safetensors")
    made = drawn("file:alone.safetensors", tmp_path)
    assert asked == [("stabilityai/stable-diffusion-xl-base-1.0", True)]
    assert np.array_equal(made, drawn("file:sdxl.safetensors", models))


def changed(models: Path, folder: Path, without: str = "", **tensors: Any) -> str:
    """A copy of the tiny file, with or without its folder, tensors taken out (None) or put in."""
    given = load_file(models / "sd1.safetensors")
    for name, tensor in tensors.items():
        full = next(each for each in given if each.replace(".", "_").endswith(name))
        del given[full]
        if tensor is not None:
            given[full] = tensor
    save_file(given, folder / "mine.safetensors")
    if without != "*":
        shutil.copytree(models / "sd1", folder / "mine")
        if without:
            (folder / "mine" / without).unlink()
    return "file:mine.safetensors"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"without": "*"},
            ["mine.safetensors alone", "stable-diffusion-v1-5", "--model-config", "tokenizer"],
        ),
        ({"without": "tokenizer/tokenizer.json"}, ["tokenizer/vocab.json"]),
        ({"without": "unet/config.json"}, ["unet/config.json"]),
        ({"diffusion_model_out_2_bias": None}, ["not in the file"]),
        ({"diffusion_model_out_2_bias": torch.zeros(5)}, ["does not fit"]),
        ({"first_stage_model_quant_conv_bias": None}, ["not in the file"]),
        ({"encoder_layers_1_mlp_fc1_bias": None}, ["text_encoder", "mlp.fc1.bias"]),
    ],
)
def test_what_is_missing_is_named(models: Path, tmp_path: Path, change: Any, says: list[str]) -> None:
    source = changed(models, tmp_path, **change)
    if "tokenizer/tokenizer.json" in change.values():
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / "mine" / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(ck.ControlKitError) as refused:
        drawn(source, tmp_path)
    assert "\n" not in str(refused.value)
    for words in says:
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("file:net/diffusion_pytorch_model.safetensors", "no whole model"),
        ("file:broken.safetensors", "broken.safetensors"),
        ({"source": "file:sd1.safetensors", "config": "file:net"}, "model_index.json"),
        ({"source": "file:sd1.safetensors", "config": "file:sdxl"}, "does not fit"),
        ({"source": "file:sd1.safetensors", "config": "file:../x"}, "source"),
        ({"source": "file:sd1.safetensors", "config": "hub:a/b"}, "without the repository"),
        ({"source": "file:sd1.safetensors", "variant": "fp16"}, "model.variant"),
        ({"source": "file:sd1", "config": "file:sd1"}, "which has its own"),
        ({"source": "embedded:base", "config": "file:sd1"}, "which has its own"),
    ],
)
def test_what_is_no_whole_model_is_said_so(models: Path, model: Any, says: str) -> None:
    with pytest.raises(ck.ControlKitError, match=says):
        drawn(model, models)


def test_a_pickle_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise SystemExit",))

    torch.save(
        {"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": Evil()}}, tmp_path / "evil.ckpt"
    )
    with pytest.raises(ck.CheckpointError):
        drawn("file:evil.ckpt", tmp_path)
