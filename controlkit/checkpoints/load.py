"""`controlkit.load`: from a source to a module that is complete, finite and of the shape its config says."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from controlkit.checkpoints.formats import Plan, Reader, expect, recognise, unwrap
from controlkit.checkpoints.info import condition_of
from controlkit.checkpoints.placing import (
    FLOATS,
    Placer,
    check_dtypes,
    choose_dtype,
    main_dtype,
    usable_device,
)
from controlkit.checkpoints.shapes import OTHER_OR_CUT
from controlkit.checkpoints.sources import Opened, open_source, read_json
from controlkit.checkpoints.weights import check_digest
from controlkit.errors import (
    CheckpointError,
    ConfigError,
    ControlKitError,
    ControlKitWarning,
    Incomplete,
    ParameterError,
    ShapeMismatch,
    Unsupported,
)
from controlkit.module import ControlModule

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")

Progress = Callable[[int, int], None]
"""Called with the bytes of weights read so far and in all."""


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
    sha256: str | None = None,
    strict: bool = False,
    allow_nonfinite: bool = False,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
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
        dtype: Of the module; by default that of most of its weights in the file, whatever else the file
            holds (float32, float16 or bfloat16).
        device: Where to put it; by default the CPU.
        sha256: What the SHA-256 of the weight file must be, in hexadecimal; of shards, the ``digest`` that
            they were once loaded with. The only way to find a change of values that leaves them finite. A
            pickle with another digest is not unpickled.
        strict: Refuse tensors that belong to nothing, which are otherwise left out with a warning.
        allow_nonfinite: Take NaN and infinite weights, with a warning, as for looking at what went wrong.
        local_files_only: Do not connect.
        allow_pickle: Unpickle code. Only for files you wrote yourself.
        progress: Called with the bytes of weights read so far and in all.

    Returns:
        The module, in evaluation mode, without gradients, with ``source``, ``digest`` (SHA-256 of the
        bytes that were read) and ``notes`` (all that was unusual, also given as warnings).

    Raises:
        CheckpointError: One of its subclasses says what is wrong: see `controlkit.errors`.
        ParameterError: An argument.
    """
    if dtype is not None and dtype not in (*FLOATS, torch.float64):
        raise ParameterError("dtype", found=str(dtype), expected="float32, float16 or bfloat16")
    device = usable_device(device)
    given, sha256 = given_config(config), _given_digest(sha256, source)
    with open_source(
        source,
        subfolder=subfolder,
        weight_name=weight_name,
        revision=revision,
        local_files_only=local_files_only,
        allow_pickle=allow_pickle,
        sha256=sha256,
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
        checked = checked_config(entries)
        with sense_of_shapes(layout.title, opened.what):
            plan = reader.plan(layout.layout, shapes, checked, opened.what)
        module = assemble(
            plan,
            opened,
            prefix,
            dtype,
            device,
            notes,
            strict=strict,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
        _finish(module, opened, reader, notes)
    for note in module.notes:
        warnings.warn(f"{opened.what}: {note}", ControlKitWarning, stacklevel=2)
    return module


@contextmanager
def sense_of_shapes(title: str, what: str) -> Iterator[None]:
    """For whatever plans a network from names and shapes: damaged files have every combination of them.

    Args:
        title: What the network would be, such as ``a ControlNet``.
        what: The file's name, for errors.

    Raises:
        ShapeMismatch: They made no sense.
    """
    try:
        yield
    except ControlKitError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ShapeMismatch(
            what,
            found=f"shapes, or a config, of nothing possible ({type(error).__name__}: {error})"[:200],
            expected=f"those of {title}",
            fix=f"Give the config that fits these weights, if there is one. {OTHER_OR_CUT}",
        ) from error


def _built(plan: Plan, what: str) -> Any:
    """The module on the meta device, where anything can be built that torch can describe."""
    try:
        with torch.device("meta"):
            return plan.build()
    except ControlKitError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{what}: config",
            found=f"a network that cannot be built ({type(error).__name__}: {error})"[:200],
            expected="one of possible sizes",
            fix="Use the config.json that came with these weights.",
        ) from error


def assemble(
    plan: Plan,
    opened: Opened,
    prefix: str,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    notes: list[str],
    *,
    strict: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> ControlModule:
    """Build the module that a plan describes and fill it, completely or not at all.

    Args:
        plan: How.
        opened: The weights.
        prefix: What all their names begin with.
        dtype: Of the module; None: what the file holds.
        device: Where to put it.
        notes: What was unusual is added.
        strict: As for `load`.
        allow_nonfinite: As for `load`.
        progress: As for `load`.

    Raises:
        CheckpointError: A weight is missing, of another shape, not finite, or of no use.
    """
    weights, what = opened.weights, opened.what
    module = _built(plan, what)
    targets = module.state_dict()
    names = {target: prefix + plan.names[target] for target in targets if target in plan.names}
    _check_names(names, targets, weights.shapes, what)
    extra = weights.shapes.keys() - names.values()
    for start in plan.beside:
        extra = {name for name in extra if not name.startswith(prefix + start)}
    if extra:
        first = ", ".join(sorted(extra)[:5])
        if strict:
            raise CheckpointError(
                what,
                found=f"{len(extra)} tensors that belong to nothing: {first!r:.300}",
                expected=f"the {len(names)} that are used and no other, as strict=True asks",
                fix="Load it without strict, which leaves them out.",
                code="CK-L23",
            )
        notes.append(f"{len(extra)} tensors were not used, such as {first!r:.200}")
    check_dtypes({target: weights.dtypes[name] for target, name in names.items()}, targets, what)
    state = _read(opened, names, targets, (dtype, usable_device(device)), notes, allow_nonfinite, progress)
    module.load_state_dict(state, strict=True, assign=True)
    if empty := [name for name, part in module.named_buffers() if part.is_meta]:
        raise Incomplete(
            what, found=f"nothing for {empty[0]}", expected="all tensors", fix="Download it again."
        )
    return module.eval().requires_grad_(False)


def _read(
    opened: Opened,
    names: Mapping[str, str],
    targets: Mapping[str, Tensor],
    goal: tuple[torch.dtype | None, torch.device | None],
    notes: list[str],
    allow_nonfinite: bool,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """The tensors of ``names`` where the module has them, in its dtype and on its device."""
    weights, (dtype, device) = opened.weights, goal
    floats = {name for target, name in names.items() if targets[target].is_floating_point()}
    stored = {weights.dtypes[name] for name in floats}
    most = main_dtype(weights.dtypes, weights.shapes, floats)
    to, converted = choose_dtype(stored, most, dtype, device, opened.what)
    placer = Placer(to, device, opened.what, allow_nonfinite=allow_nonfinite)
    users: dict[str, list[str]] = {}
    for target, name in names.items():
        users.setdefault(name, []).append(target)
    total = sum(math.prod(weights.shapes[name]) * weights.dtypes[name].itemsize for name in users)
    state: dict[str, Tensor] = {}
    done = 0
    for name, tensor in weights.read(users.keys()):
        for number, target in enumerate(users[name]):
            kept = None if targets[target].is_floating_point() else targets[target].dtype
            state[target] = placer.place(name, tensor if number == 0 else tensor.clone(), kept)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    notes += [*converted, *placer.finish()]
    return state


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
            found=f"{len(targets) - len(missing)} of {len(targets)} weights, without {first:.420}",
            expected="all of them",
            fix="Give the config that fits these weights; or if some were lost, download them again.",
            code="CK-L22",
        )


def _finish(module: ControlModule, opened: Opened, reader: Reader, notes: list[str]) -> None:
    module.source = opened.what
    module.digest = checked_digest(opened)
    condition: Any = condition_of(opened)
    module.condition = condition  # type: ignore[assignment]
    remarks = reader.remarks(module)
    module.notes = (*opened.notes, *opened.weights.notes, *notes, *remarks)  # type: ignore[assignment]


def checked_digest(opened: Opened) -> str | None:
    """SHA-256 of the weights that were read.

    Raises:
        CheckpointCorrupt: It is another than the caller or the hub names.
    """
    if opened.weights.digest is not None:
        check_digest(opened.weights.digest, opened.sha256, opened.what)
    return opened.weights.digest


def given_config(config: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """The entries of ``config=``, which may be the path of a JSON file."""
    if config is None:
        return None
    if isinstance(config, Mapping):
        for key, value in cast(Mapping[object, object], config).items():
            if not isinstance(key, str) or getattr(value, "shape", None):
                raise ParameterError(
                    "config",
                    found=f"{key!r:.60} with {'an array' if isinstance(key, str) else value!r:.60}",
                    expected="names, with numbers, texts, or lists of them",
                    fix="Give what a config.json could hold; of an array its tolist().",
                )
        return dict(config)
    if not isinstance(config, str | os.PathLike):
        raise ParameterError(
            "config", found=f"a {type(config).__name__}", expected="a dict or the path of one"
        )
    return read_json(Path(config), str(config))


def _given_digest(sha256: str | None, source: object) -> str | None:
    if sha256 is None:
        return None
    found = _DIGEST.fullmatch(sha256) if isinstance(sha256, str) else None
    if found is None or isinstance(source, Mapping):
        raise ParameterError(
            "sha256",
            found=f"{sha256!r:.80}" if found is None else "a state dict, which has none",
            expected="64 hexadecimal digits, for a file",
            fix="Compute it with: sha256sum FILE",
        )
    return found[1].lower()


def checked_config(entries: dict[str, Any] | None) -> dict[str, Any] | None:
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
