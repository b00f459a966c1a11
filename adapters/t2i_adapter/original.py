"""`T2IAdapter` in its original layouts: full, light and SDXL, with or without the prefix ``adapter.``.

Source:
    The names and what they imply are those of TencentARC/T2I-Adapter@16bba674
    `ldm/modules/encoders/adapter.py` (`Adapter`, `Adapter_light`) and @c408b059
    `Adapter/models/adapters.py` (`Adapter_XL`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from controlkit.adapters.t2i_adapter.config import BASES, T2IAdapterConfig
from controlkit.adapters.t2i_adapter.model import T2IAdapter
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of_rank
from controlkit.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Plan

_TYPES = {"Adapter": "full_adapter", "Adapter_light": "light_adapter", "Adapter_XL": "full_adapter_xl"}
_FOLDS = {"full_adapter": 8, "light_adapter": 8, "full_adapter_xl": 16}
_SD_INPUTS, _XL_INPUTS = (64, 192), (256, 768)
_ARGUMENTS = ("cin", "channels", "nums_rb", "ksize", "sk", "use_conv")
_BESIDE = {
    "model.diffusion_model.": "the base model's U-Net",
    "first_stage_model.": "the base model's VAE",
    "cond_stage_model.": "the base model's text encoder",
}


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a T2I-Adapter from these tensors.

    Args:
        layout: ``t2i-original``.
        shapes: Of all tensors, by name.
        config: Arguments of the original's constructor (``cin``, ``channels``, ``nums_rb``, ``ksize``,
            ``sk``, ``use_conv``), all or some, and ``class``: ``Adapter``, ``Adapter_light`` or
            ``Adapter_XL``. None: told by the shapes. SDXL's is known by 256 or 768 inputs, or by halving
            with a convolution in one place only.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The config cannot be one of this layout, or describes far more than there is.
        Unsupported: A variant that the original can build and not run.
    """
    from controlkit.checkpoints.formats import Plan

    entries, assumed = infer(shapes, config, what)
    built = T2IAdapterConfig.from_dict(entries, f"{what}: config")
    refuse_giant(built.num_res_blocks * len(built.feature_channels), shapes, what)
    with torch.device("meta"):
        targets = T2IAdapter(built).state_dict()
    prefix = _prefix(shapes)
    names = {target: prefix + name for target, name in original_names(built, targets).items()}
    for target, name in names.items():
        stored = shapes.get(name)
        if target.endswith(".skep.weight") and stored and stored[1:2] != targets[target].shape[1:2]:
            raise Unsupported(
                f"{what}: {name}",
                found=f"shape {list(stored)}",
                expected=f"{list(targets[target].shape)}",
                fix="Some revisions of the original build this shortcut where it cannot run; train another.",
            )
    return Plan(lambda: T2IAdapter(built, assumed), names, _BESIDE)


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        built = T2IAdapterConfig.from_dict(infer(shapes, config, "")[0])
    except ValueError:
        return "other", dict(config or {})
    return built.base, {key: value for key, value in built.to_dict().items() if key[0] != "_"}


def remarks(module: T2IAdapter) -> list[str]:
    """What could only be assumed; its weights are never all zero."""
    return list(module.assumed)


def original_names(config: T2IAdapterConfig, names: Iterable[str]) -> dict[str, str]:
    """The original name, without a prefix, of each parameter of a `T2IAdapter`.

    Raises:
        Unsupported: The original has no such network.
    """
    fold = _FOLDS[config.adapter_type]
    if config.downscale_factor != fold:
        raise Unsupported(
            "layout='original'",
            found=f"a {config.adapter_type} that folds blocks of {config.downscale_factor} pixels",
            expected=f"{fold}, which is all the original has",
            fix="Save it in diffusers layout.",
        )
    light, depth = config.adapter_type == "light_adapter", config.num_res_blocks

    def original(name: str) -> str:
        match = re.fullmatch(r"adapter\.body\.(\d+)\.(?:resnets\.(\d+)\.)?(.+)", name)
        if match is None:
            return name.removeprefix("adapter.")
        level, rest = int(match[1]), match[3].replace("downsample.", "down_opt.op.")
        if light:
            return f"body.{level}.{rest}" if match[2] is None else f"body.{level}.body.{match[2]}.{rest}"
        return f"body.{level * depth + int(match[2] or 0)}.{rest}"

    return {name: original(name) for name in names}


def infer(shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> tuple[dict[str, Any], list[str]]:
    """Entries of a `T2IAdapterConfig` from shapes, and from the original's arguments where they are given.

    Returns:
        The entries, and remarks on what could only be assumed.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ConfigError: An argument that the original does not have, inputs that it cannot fold, or blocks
            that form two levels as well as three.
    """
    given = dict(config or {})
    named = given.pop("class", None) or given.pop("_class_name", None)
    given = {key: value for key, value in given.items() if not key.startswith("_")}
    if unknown := sorted(set(given) - set(_ARGUMENTS)):
        raise ConfigError(
            f"{what}: config {unknown[0]}",
            found="an entry that the original's constructors do not have",
            expected=", ".join((*_ARGUMENTS, "class")),
        )
    named = named if named is None else str(named).rpartition(".")[2]
    if named is not None and named not in _TYPES:
        raise ConfigError(f"{what}: config class", found=repr(named), expected=" or ".join(_TYPES))
    prefix = _prefix(shapes)
    short = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    light = any(re.match(r"body\.\d+\.body\.", name) for name in short)
    assumed: list[str] = []
    folded = shape_of_rank(short, "body.0.in_conv.weight" if light else "conv_in.weight", 4, what)[1]
    if light:
        kind = "light_adapter"
        last = [_width(short, f"body.{level}.out_conv.weight", what) for level in _numbers(short)]
        found: dict[str, Any] = {"channels": last, "nums_rb": count(short, r"body\.0\.body\.(\d+)\.")}
    else:
        found, assumed = _full(short, given, named, what)
        kind = "full_adapter_xl" if _is_xl(short, folded, found) else "full_adapter"
    if named is not None and (named == "Adapter_light") != light:
        raise ConfigError(
            f"{what}: config class",
            found=named,
            expected="Adapter_light" if light else "Adapter or Adapter_XL, by the tensors' names",
        )
    kind = kind if named is None else _TYPES[named]
    entries = {"cin": folded, **found, **given}
    channels = entries["channels"]
    if not isinstance(channels, list | tuple) or not isinstance(entries["cin"], int):
        raise ConfigError(
            f"{what}: config", found=f"{entries!r:.120}", expected="a list of channels, and cin"
        )
    area = _FOLDS[kind] ** 2
    if entries["cin"] % area or not entries["cin"]:
        raise ConfigError(
            f"{what}: config cin",
            found=str(entries["cin"]),
            expected=f"a multiple of {area}, as {_FOLDS[kind]}x{_FOLDS[kind]} pixels are folded",
            fix='Give config={"class": "Adapter"} or "Adapter_XL" if it is the other.',
        )
    repeats = light and tuple(channels[-1:]) == tuple(channels[-2:-1])
    told = {
        "in_channels": entries["cin"] // area,
        "channels": tuple(channels[:-1] if light else channels),
        "num_res_blocks": entries["nums_rb"],
        "downscale_factor": _FOLDS[kind],
        "adapter_type": kind,
        "pooling": "ceil" if entries.get("use_conv") else "floor",
        **{key: entries[key] for key in ("ksize", "sk", "use_conv") if key in entries},
        **({"last_channels": channels[-1]} if light and not repeats else {}),
    }
    return told, assumed


def _prefix(shapes: Shapes) -> str:
    return "adapter." if any(name.startswith("adapter.body.") for name in shapes) else ""


def _numbers(short: Shapes) -> range:
    return range(count(short, r"body\.(\d+)\."))


def _width(short: Shapes, name: str, what: str) -> int:
    return shape_of_rank(short, name, 4, what)[0]


def _full(
    short: Shapes, given: Mapping[str, Any], named: str | None, what: str
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of `Adapter` or `Adapter_XL` that follow from the shapes, and what was assumed."""
    sd = named == "Adapter" if named else shape_of_rank(short, "conv_in.weight", 4, what)[1] in _SD_INPUTS
    widths = [_width(short, f"body.{block}.block1.weight", what) for block in _numbers(short)]
    depth, assumed = _depth(short, widths, given, sd, what)
    arguments = {
        "channels": widths[::depth],
        "nums_rb": depth,
        "ksize": shape_of_rank(short, "body.0.block2.weight", 4, what)[-1],
        "sk": not any(".skep." in name for name in short),
        "use_conv": any(".down_opt." in name for name in short),
    }
    return arguments, assumed


def _depth(
    short: Shapes, widths: list[int], given: Mapping[str, Any], sd: bool, what: str
) -> tuple[int, list[str]]:
    """Blocks per level: what is given, or what agrees with where the widths change and sizes are halved."""
    total = len(widths)
    if isinstance(depth := given.get("nums_rb"), int) and 0 < depth <= total:
        return depth, []
    if isinstance(channels := given.get("channels"), list | tuple) and 0 < len(channels) <= total:
        return total // len(channels), []
    starts = [block for block in range(1, total) if widths[block] != widths[block - 1]]
    halved = [block for block in range(total) if f"body.{block}.down_opt.op.weight" in short]
    fits = [n for n in range(1, total + 1) if not any(start % n for start in (total, *starts, *halved))]
    if len(halved) > 1:  # every level but the first begins with one
        return next((n for n in fits if halved == list(range(n, total, n))), fits[-1]), []
    if halved:  # the second of two levels, or SDXL's third alone
        fits = [n for n in fits if halved[0] == (n if sd else 2 * n)] or fits
    return _likeliest(fits, widths, what)


def _likeliest(fits: list[int], widths: list[int], what: str) -> tuple[int, list[str]]:
    """The number of blocks per level where a flat list of blocks does not tell it.

    A known base model's widths, or four levels as every Stable Diffusion U-Net with such adapters has, or
    else the one number that gives two or three levels, or the fewest beyond.
    """
    total = len(widths)
    known = [n for n in fits if tuple(widths[::n]) in BASES]
    likely = [n for n in fits if 2 <= total // n <= 4]
    if known or len(likely) < 2:
        several = [n for n in fits if total // n > 1]
        return (*known, *likely, *several[-1:], fits[-1])[0], []
    if total // likely[0] == 4:
        fewer = " or ".join(str(total // n) for n in likely[1:])
        return likely[0], [
            f"4 levels of {likely[0]} blocks were assumed, where {fewer} levels fit too;"
            " config={'nums_rb': ...} can say so"
        ]
    raise ConfigError(
        f"{what}: config",
        found=f"{total} blocks, which form {' or '.join(str(total // n) for n in likely)} levels",
        expected="the number of blocks of a level, which these shapes do not tell",
        fix='Give config={"nums_rb": …}.',
        code="CK-L30",
    )


def _is_xl(short: Shapes, folded: int, found: Mapping[str, Any]) -> bool:
    """Whether it is SDXL's: by where it halves, by where it widens, else by its inputs."""
    depth, levels = found["nums_rb"], len(found["channels"])
    if found["use_conv"] and levels > 2:
        return f"body.{depth}.down_opt.op.weight" not in short
    return folded in _XL_INPUTS and len(set(found["channels"][2:])) <= 1
