"""The weight files of ControlNets that are stored relative to a base model: Control-LoRAs and differences.

Both have the names of the original layout (``original.py``) and a tensor that marks them. A Control-LoRA has
``NAME.up`` and ``NAME.down`` where a complete file has ``NAME.weight``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, cast

import torch

from controlkit.adapters.controlnet import checkpoint
from controlkit.adapters.controlnet.original import PREFIX
from controlkit.checkpoints.shapes import OTHER_OR_CUT, Shapes
from controlkit.errors import CheckpointError, Incomplete, ShapeMismatch

if TYPE_CHECKING:
    from controlkit.adapters.controlnet.model import ControlNet
    from controlkit.adapters.controlnet.relative_model import RelativeControlNet
    from controlkit.checkpoints.formats import Plan

_LORA = ("lora_controlnet", ())
_DIFFERENCE = ("difference", (1.0,))
_THREE_BY_THREE = (".in_layers.2", ".out_layers.3", ".op", "input_blocks.0.0")
_ONE_BY_ONE = (".skip_connection",)


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a Control-LoRA or a difference from these tensors.

    Args:
        layout: ``control-lora``, or ``ldm`` for a difference.
        shapes: Of all tensors, by name.
        config: As for a complete ControlNet in the original layout: arguments of its constructor, or a
            config.json.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: A factor, or a tensor that a base model does not have, is missing.
        ShapeMismatch: Two factors do not fit each other, or what the network needs.
        ConfigError: The head count is not known.
    """
    from controlkit.adapters.controlnet.relative_model import OWN, ControlLora, ControlNetDifference
    from controlkit.checkpoints.formats import Plan

    is_lora = layout == "control-lora"
    whole = _whole(shapes, what) if is_lora else _without_marker(shapes)
    complete = checkpoint.plan("ldm", whole, config, what)
    with torch.device("meta"):
        net = cast("ControlNet", complete.build())
    names: dict[str, str] = {}
    missing: list[str] = []
    for name, target in net.state_dict().items():
        theirs = complete.names.get(name)
        shared = not name.startswith("controlnet_")
        if theirs is None:
            if is_lora or not shared:
                missing.append(name)
            continue
        _check_shape(whole[theirs], tuple(target.shape), f"{what}: {theirs}")
        if theirs not in shapes:
            stem = theirs.removesuffix(".weight")
            names |= {f"up.{name}": f"{stem}.up", f"down.{name}": f"{stem}.down"}
        else:
            names[f"{OWN if is_lora or not shared else 'difference'}.{name}"] = theirs
    if missing:
        raise Incomplete(
            what,
            found=f"no {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if missing[3:] else ""),
            expected="each weight, whole or as two factors" if is_lora else "what a base model does not have",
            fix=OTHER_OR_CUT,
            code="CK-L22",
        )
    stored = {name: shapes[theirs] for name, theirs in names.items()}
    kind, marker = (ControlLora, _LORA) if is_lora else (ControlNetDifference, _DIFFERENCE)
    return Plan(
        lambda: kind(net.config, stored, names, _marker(shapes, marker)),
        {_parameter(name): theirs for name, theirs in names.items()},
        {**complete.beside, marker[0]: "the mark", PREFIX + marker[0]: "the mark"},
    )


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told; for a Control-LoRA its rank too."""
    if layout != "control-lora":
        return checkpoint.describe("ldm", _without_marker(shapes), config)
    ranks = [shape[0] for name, shape in shapes.items() if name.endswith(".down") and shape]
    try:
        base, entries = checkpoint.describe("ldm", _whole(shapes, ""), config)
    except CheckpointError:
        base, entries = "other", {}
    return base, {**entries, **({"rank": max(ranks)} if ranks else {})}


def remarks(module: RelativeControlNet) -> list[str]:
    """Say so when the weights do nothing."""
    outputs = [
        tensor
        for name, tensor in module.state_dict().items()
        if name.startswith(("own.controlnet_down_blocks/", "own.controlnet_mid_block/"))
    ]
    if not any(bool(tensor.any()) for tensor in outputs):
        return ["all its output convolutions are zero: it was not trained, and has no effect"]
    return []


def _parameter(name: str) -> str:
    group, _, rest = name.partition(".")
    return f"{group}.{rest.replace('.', '/')}"


def _marker(shapes: Shapes, marker: tuple[str, tuple[float, ...]]) -> tuple[str, tuple[float, ...]]:
    name = marker[0]
    return (name if name in shapes else PREFIX + name, marker[1])


def _without_marker(shapes: Shapes) -> Shapes:
    return {
        name: shape
        for name, shape in shapes.items()
        if name.removeprefix(PREFIX) not in (_LORA[0], _DIFFERENCE[0])
    }


def _whole(shapes: Shapes, what: str) -> Shapes:
    """The shapes of a Control-LoRA's tensors once the factors are multiplied.

    Raises:
        Incomplete: A factor without the other.
        ShapeMismatch: Two that cannot be multiplied.
    """
    whole = {
        name: shape for name, shape in _without_marker(shapes).items() if not name.endswith((".up", ".down"))
    }
    for name in shapes:
        stem, _, factor = name.rpartition(".")
        if factor not in ("up", "down"):
            continue
        up, down = (shapes.get(f"{stem}.{side}") for side in ("up", "down"))
        if up is None or down is None:
            raise Incomplete(
                what,
                found=f"{name!r:.120} alone",
                expected=f"{stem}.up and {stem}.down",
                fix=OTHER_OR_CUT,
                code="CK-L22",
            )
        if len(up) < 2 or len(down) < 2 or prod(up[1:]) != down[0]:
            raise ShapeMismatch(
                f"{what}: {stem}",
                found=f"factors of shapes {list(up)} and {list(down)}",
                expected="(outputs, rank) and (rank, inputs)",
                fix=OTHER_OR_CUT,
                code="CK-L24",
            )
        whole[f"{stem}.weight"] = (up[0], *_inputs(stem, down[1:]))
    return whole


def _inputs(stem: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's factor may be flat; its kernel is told by its place."""
    size = 3 if stem.endswith(_THREE_BY_THREE) else 1 if stem.endswith(_ONE_BY_ONE) else 0
    return shape if len(shape) != 1 or not size else (shape[0] // size**2, size, size)


def _check_shape(found: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
    if found != expected:
        raise ShapeMismatch(
            what,
            found=f"shape {list(found)}",
            expected=f"{list(expected)}, by the config",
            fix="Use the config that belongs to these weights, or none.",
            code="CK-L24",
        )
