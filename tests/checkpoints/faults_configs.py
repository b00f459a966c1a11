"""Rows 30 to 32 of the fault table: whole weights with the wrong config."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from controlkit.checkpoints import load
from controlkit.errors import CheckpointError, ConfigError, ConfigMismatch, ShapeMismatch
from tests import tiny
from tests.checkpoints.fault_table import Maker, check, refuse
from tests.checkpoints.files import adapter


# L30
def configured(text: str) -> Maker:
    def make(folder: Path) -> Path:
        place = tiny.controlnet().save(folder / "x")
        (place / "config.json").write_text(text)
        return place

    return make


def _entries(**changes: Any) -> str:
    return json.dumps({**tiny.controlnet().config_entries(), **changes})


for _name, _text in {
    "empty": "",
    "cut": '{"a": 1',
    "list": "[1]",
    "deep": "[" * 5000,
    "null": "null",
}.items():
    refuse(30, _name, configured(_text), ConfigError, "malformed JSON")
refuse(30, "unknown_key", configured(_entries(surprise=1)), ConfigError, "surprise")
refuse(
    30,
    "wrong_type",
    configured(_entries(layers_per_block="2")),
    ConfigError,
    "layers_per_block",
)
refuse(30, "escape", configured(_entries(**{"\x1b[31m\n": 1})), ConfigError, r"x1b\[31m")
refuse(
    30,
    "other_class",
    configured(_entries(_class_name="UNet2DConditionModel")),
    ConfigMismatch,
    "_class_name",
    "'UNet2DConditionModel'; needed ControlNetModel",
)


@check(30)
def a_missing_config_is_inferred(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = adapter().save(folder / "x")
    (place / "config.json").unlink()
    assert load(place).config_entries() == adapter().config_entries()
    place = tiny.controlnet().save(folder / "y")
    (place / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config.json.*attention_head_dim") as caught:
        load(place)  # its heads are in no shape, and it is no published network
    assert caught.value.code == "CK-L30"


# L31 (memory in `test_faults.py`)
GIANTS: dict[str, dict[str, Any]] = {
    "widths": {"block_out_channels": [1 << 20] * 4},
    "fitting_widths": {"block_out_channels": [16, 32, 32, 65536], "norm_num_groups": 1},
    "layers": {"layers_per_block": 1_000_000},
    "many_layers": {"layers_per_block": 60_000},
    "transformers": {"transformer_layers_per_block": 50_000},
    "levels": {"block_out_channels": [16] * 10_000},
    "hint": {"conditioning_embedding_out_channels": [16] * 60},
}
for _name, _changes in GIANTS.items():
    _error = {"fitting_widths": ShapeMismatch, "hint": ShapeMismatch}.get(_name, ConfigError)
    _code = {
        "fitting_widths": "CK-L24",
        "hint": "CK-L24",
        "widths": "CK-L30",
        "layers": "CK-L30",
        "levels": "CK-L30",
    }.get(_name, "CK-L31")
    refuse(31, _name, configured(_entries(**_changes)), _error, code=_code)

ADAPTERS: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "adapter_widths": ({"channels": [1 << 20] * 2}, ConfigError, "CK-L30"),
    "adapter_fitting_widths": ({"channels": [65536] * 64}, ShapeMismatch, "CK-L24"),
    "adapter_layers": ({"num_res_blocks": 1_000_000}, ConfigError, "CK-L30"),
    "adapter_many_layers": ({"num_res_blocks": 60_000}, ConfigError, "CK-L31"),
    "adapter_levels": ({"channels": [8] * 10_000}, ConfigError, "CK-L30"),
}


def _of_adapter(changes: dict[str, Any]) -> Maker:
    def make(folder: Path) -> Path:
        place = adapter().save(folder / "x")
        (place / "config.json").write_text(json.dumps({**adapter().config_entries(), **changes}))
        return place

    return make


for _name, (_changes, _error, _code) in ADAPTERS.items():
    refuse(31, _name, _of_adapter(_changes), _error, code=_code)

# L32
for _key, _value in {
    "auto_map": {"AutoModel": "canary_of_tests.touch"},
    "_auto_map": "x",
    "custom_pipelines": {"a": "b"},
    "trust_remote_code": True,
}.items():
    refuse(32, _key, configured(_entries(**{_key: _value})), ConfigError, _key, "Nothing was fetched or run")
refuse(
    32,
    "repository",
    configured(_entries(pretrained_model_name_or_path="a/b")),
    ConfigError,
    "pretrained_model_name_or_path",
    code="CK-L30",
)


@check(32)
def nothing_is_imported_or_fetched_for_a_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, pytest.fail)
    monkeypatch.setattr(socket, "getaddrinfo", pytest.fail)
    for key in ("auto_map", "_class_name", "module", "_target_"):
        with pytest.raises(CheckpointError):
            load(configured(_entries(**{key: "antigravity.Model", "surprise": 1}))(folder))
    assert not (set(sys.modules) - before) & {"antigravity"}
