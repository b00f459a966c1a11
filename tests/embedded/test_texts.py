"""The embedded text encoder under both releases' names for its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import controlkit as ck
from controlkit.embedded.texts import PREFIX, renamed, text_encoder

FOLDER = ck.embedded.path("base") / "text_encoder"


def test_the_pipelines_text_encoder_has_the_weights_of_the_file() -> None:
    file = {
        name.replace(PREFIX, ""): weight for name, weight in load_file(FOLDER / "model.safetensors").items()
    }
    model = ck.embedded.pipeline().text_encoder.state_dict()
    assert {name.replace(PREFIX, "") for name in model} == set(file)
    for name, weight in model.items():
        assert torch.equal(weight, file[name.replace(PREFIX, "")].float()), name


def test_a_file_with_the_other_names_gives_the_same_encoder(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "config.json", tmp_path)
    plain = {
        name.replace(PREFIX, ""): weight for name, weight in load_file(FOLDER / "model.safetensors").items()
    }
    tokens = torch.arange(16)[None]
    answers: list[torch.Tensor] = []
    for prefix in ("", PREFIX):
        save_file({prefix + name: weight for name, weight in plain.items()}, tmp_path / "model.safetensors")
        with torch.no_grad():
            answers.append(text_encoder(tmp_path)(tokens).last_hidden_state)
    assert torch.equal(*answers)


def test_names_follow_the_model_whichever_it_has() -> None:
    weight = torch.zeros(1)
    old, new, other = f"text.encoder.{PREFIX}a.weight", "text.encoder.a.weight", "image.b.weight"
    assert set(renamed({new: weight, other: weight}, [old, other])) == {old, other}
    assert set(renamed({old: weight, other: weight}, [new, other])) == {new, other}
    assert set(renamed({"x": weight}, [new])) == {"x"}, "left over, for load_state_dict to refuse"
