"""`controlkit.load`: from a source to a module that is complete, finite and of the shape its config says."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controlkit.checkpoints.formats import Plan, Reader, expect, recognise, unwrap
from controlkit.checkpoints.info import condition_of, main_dtype
from controlkit.checkpoints.sources import Opened, open_source, read_json
from controlkit.errors import (
    CheckpointCorrupt,
    ConfigError,
    ControlKitWarning,
    Incomplete,
    NonFinite,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from controlkit.module import ControlModule

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_WIDENED = {
    torch.float64: torch.float32,
    torch.float8_e4m3fn: torch.float16,
    torch.float8_e5m2: torch.float16,
}


def load(
    source: object,
    *,
    kind: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    subfolder: str | None = None,
    weight_name: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
) -> ControlModule:
    """Load a control from a hub id, a folder, a file or a state dict.

    What it is is told by the names and shapes of its tensors, never by its name. Nothing is returned
    unless every weight is there, has the shape that the config says, and is finite.

    Args:
        source: A hub id (``owner/name``), a folder in diffusers layout, a file (safetensors, or what
            `torch.save` wrote, which is read without running what is in it), or a state dict.
        kind: Refuse anything else, such as ``controlnet``.
        config: What shapes cannot tell, such as ``{"attention_head_dim": 8}``; laid over config.json. Or
            the path of a config.json.
        subfolder: Of the folder or repository.
        weight_name: Of the weight file in it.
        revision: Branch, tag or commit on the hub; resolved once.
        dtype: Of the module; by default what the file holds (float32, float16 or bfloat16).
        device: Where to put it; by default the CPU.
        local_files_only: Do not connect.
        allow_pickle: Unpickle code. Only for files you wrote yourself.

    Returns:
        The module, in evaluation mode, without gradients, with ``source``, ``digest`` (SHA-256 of the
        bytes that were read) and ``notes`` (all that was unusual, also given as warnings).

    Raises:
        CheckpointError: One of its subclasses says what is wrong: see `controlkit.errors`.
        ParameterError: An argument.
    """
    if dtype is not None and dtype not in (*_FLOATS, torch.float64):
        raise ParameterError("dtype", found=str(dtype), expected="float32, float16 or bfloat16")
    given = _given(config)
    with open_source(
        source,
        subfolder=subfolder,
        weight_name=weight_name,
        revision=revision,
        local_files_only=local_files_only,
        allow_pickle=allow_pickle,
    ) as opened:
        weights = opened.weights
        prefix, notes = unwrap(weights.shapes)
        shapes = {name[len(prefix) :]: shape for name, shape in weights.shapes.items()}
        layout = recognise(shapes, opened.what, config=opened.config)
        expect(layout, kind, opened.what, shapes)
        reader = layout.load_reader()
        entries = (
            None if opened.config is None and given is None else {**(opened.config or {}), **(given or {})}
        )
        plan = reader.plan(layout.layout, shapes, _checked(entries), opened.what)
        module = _assemble(plan, opened, prefix, dtype, device, notes)
        _finish(module, opened, reader, notes)
    for note in module.notes:
        warnings.warn(f"{opened.what}: {note}", ControlKitWarning, stacklevel=2)
    return module


def _assemble(
    plan: Plan,
    opened: Opened,
    prefix: str,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    notes: list[str],
) -> ControlModule:
    weights, what = opened.weights, opened.what
    with torch.device("meta"):
        module = plan.build()
    targets = module.state_dict()
    names = {target: prefix + plan.names[target] for target in targets if target in plan.names}
    _check_names(names, targets, weights.shapes, what)
    extra = weights.shapes.keys() - names.values()
    for start in plan.beside:
        extra = {name for name in extra if not name.startswith(prefix + start)}
    if extra:
        first = ", ".join(sorted(extra)[:3])
        notes.append(f"{len(extra)} tensors were not used, such as {first!r:.200}")
    stored = next((item for item in _FLOATS if str(item) == main_dtype(opened)), None)
    to = dtype or stored or torch.float32
    for name in names.values():
        if weights.dtypes[name] not in (*_FLOATS, *_WIDENED):
            raise Unsupported(
                f"{what}: {name!r:.100}",
                found=f"dtype {str(weights.dtypes[name]).removeprefix('torch.')}",
                expected="floating-point weights",
                fix="Quantised weights need scales that this file does not say; use the original.",
                code="CK-L27",
            )
    found = {str(weights.dtypes[name]) for name in names.values()} - {str(to)}
    if dtype is None and found:
        if stored is None:
            to = _WIDENED.get(next(iter({weights.dtypes[name] for name in names.values()})), to)
        notes.append(
            f"weights stored as {', '.join(sorted(found))} were converted to {to}".replace("torch.", "")
        )
    where = {source: target for target, source in names.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in weights.read(where.keys()):
        state[where[name]] = _place(tensor, to, device, f"{what}: {name!r:.100}")
    module.load_state_dict(state, strict=True, assign=True)
    assert not any(part.is_meta for part in (*module.parameters(), *module.buffers())), "weights left empty"
    return module.eval().requires_grad_(False)


def _check_names(
    names: Mapping[str, str],
    targets: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
) -> None:
    for target, tensor in targets.items():
        stored = shapes.get(names.get(target, ""))
        if stored is not None and stored != tuple(tensor.shape):
            raise ShapeMismatch(
                f"{what}: {target}",
                found=f"shape {list(stored)}",
                expected=f"{list(tensor.shape)}, by the config",
                fix="Use the config.json that came with these weights.",
                code="CK-L24",
            )
    missing = [target for target in targets if names.get(target) not in shapes]
    if missing:
        first = ", ".join(missing[:5])
        raise Incomplete(
            what,
            found=f"{len(targets) - len(missing)} of {len(targets)} weights, without {first:.300}",
            expected="all of them",
            fix="Download it again, or give the config that fits these weights.",
            code="CK-L22",
        )


def _place(tensor: Tensor, dtype: torch.dtype, device: torch.device | str | None, what: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise Unsupported(what, found="a sparse or quantised tensor", expected="a plain one", code="CK-L27")
    if tensor.is_meta:
        raise Incomplete(what, found="a tensor without data (meta)", expected="weights", code="CK-L22")
    _check_finite(tensor, what, "Such weights make every picture black; download the file again.")
    placed = tensor.to(device=device, dtype=dtype, memory_format=torch.contiguous_format)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        _check_finite(placed, what, f"They do not fit into {dtype}; use bfloat16 or float32.")
    return placed


def _check_finite(tensor: Tensor, what: str, fix: str) -> None:
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(wide))).all():
        count = int((~torch.isfinite(wide)).sum())
        raise NonFinite(
            what, found=f"{count} NaN or infinite values", expected="finite weights", fix=fix, code="CK-L25"
        )


def _finish(module: ControlModule, opened: Opened, reader: Reader, notes: list[str]) -> None:
    module.source = opened.what
    module.digest = opened.weights.digest
    if opened.sha256 is not None and module.digest is not None and module.digest != opened.sha256:
        raise CheckpointCorrupt(
            opened.what,
            found=f"SHA-256 {module.digest[:16]}…",
            expected=f"{opened.sha256[:16]}…, as the hub lists",
            fix="Delete it from the cache and download it again.",
            code="CK-L29",
        )
    condition: Any = condition_of(opened)
    module.condition = condition  # type: ignore[assignment]
    remarks = reader.remarks(module)
    module.notes = (*opened.notes, *opened.weights.notes, *notes, *remarks)  # type: ignore[assignment]


def _given(config: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any] | None:
    if config is None or isinstance(config, Mapping):
        return None if config is None else dict(config)
    if not isinstance(config, str | os.PathLike):
        raise ParameterError(
            "config", found=f"a {type(config).__name__}", expected="a dict or the path of one"
        )
    return read_json(Path(config), str(config))


def _checked(entries: dict[str, Any] | None) -> dict[str, Any] | None:
    """Refuse what a config must never ask for: code, other repositories, quantisation."""
    for key in entries or ():
        if key.strip("_").lower() in ("auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code"):
            raise ConfigError(
                f"config {key}",
                found="a reference to code",
                expected="data",
                fix="Nothing was fetched or run. Remove the entry if the weights need no code.",
                code="CK-L32",
            )
        if key == "quantization_config" and (entries or {})[key]:
            raise Unsupported(
                "config quantization_config",
                found=json.dumps(entries[key] if entries else None, default=str)[:80],
                expected="weights in float32, float16 or bfloat16",
                fix="Use the original weights.",
                code="CK-L27",
            )
    return entries
