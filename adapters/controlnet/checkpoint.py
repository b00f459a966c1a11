"""The weight files a `ControlNet` is read from, and how one begins as a copy of a U-Net's encoder.

What shapes tell is read from them; the number of attention heads is not in them, so it is known for
published families and asked for elsewhere. Names and arguments of the first implementation's files are in
``original.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from controlkit.adapters.controlnet import original
from controlkit.adapters.controlnet.config import ControlNetConfig
from controlkit.checkpoints.encoder import encoder_entries, refuse_uneven
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of
from controlkit.errors import ConfigError, Incomplete, ParameterError, ShapeMismatch

if TYPE_CHECKING:
    from controlkit.adapters.controlnet.model import ControlNet
    from controlkit.checkpoints.formats import Plan


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a ControlNet from these tensors.

    Args:
        layout: ``diffusers``, or ``ldm`` for the first implementation's.
        shapes: Of all tensors, by name.
        config: Entries of config.json, all or some; for ``ldm`` arguments of the original constructor, or a
            whole config.json. None: told by the shapes.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The config describes far more than there is, or the head count is not known.
        Unsupported: A variant that is not implemented.
    """
    from controlkit.adapters.controlnet.model import ControlNet
    from controlkit.checkpoints.formats import Plan

    config = config or {}
    complete = "block_out_channels" in config or "_class_name" in config
    names, beside = {name: name for name in shapes}, {}
    if layout == "ldm":
        names, beside = original.our_names(shapes, what), original.BESIDE
        shapes = {ours: shapes[theirs] for ours, theirs in names.items()}
    if complete:
        entries = dict(config)
        if layout == "ldm":
            refuse_uneven(shapes, infer(shapes, what), what)
    elif layout == "ldm":
        entries = original.original_entries(infer(shapes, what), config, shapes, what)
    else:
        entries = {**infer(shapes, what), **config}
    if "attention_head_dim" not in entries and not entries.get("num_attention_heads") and not complete:
        raise ConfigError(
            f"{what}: config",
            found="no config.json, and widths of no published family",
            expected="the number of attention heads, which shapes do not tell",
            fix='Give config={"attention_head_dim": …}, which in diffusers means the number of heads.',
            code="CK-L30",
        )
    built = ControlNetConfig.from_dict(entries, f"{what}: config")
    layers = built.layers_per_block * len(built.block_out_channels)
    blocks = layers + sum(depth * built.layers_per_block for depth in built.depths)
    refuse_giant(blocks, shapes, what)
    return Plan(lambda: ControlNet(built), names, beside)


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    from controlkit.checkpoints.formats import base_of

    try:
        if layout == "ldm":
            names = original.our_names(shapes, "")
            shapes, config = {ours: shapes[theirs] for ours, theirs in names.items()}, None
        entries = dict(config) if config else infer(shapes, "")
    except ValueError:
        return base_of(shapes), {}
    wide = {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}
    try:
        return ControlNetConfig.from_dict({"attention_head_dim": 1, **wide}).base, entries
    except ValueError:
        return base_of(shapes), entries


def remarks(module: ControlNet) -> list[str]:
    """Say so when the weights do nothing, or probably something else than they were trained for."""
    found: list[str] = []
    convs = [*module.controlnet_down_blocks, module.controlnet_mid_block]
    if all(not parameter.any() for conv in convs for parameter in conv.parameters()):
        found.append("all its output convolutions are zero: it was not trained, and has no effect")
    if module.condition == "shuffle" and module.base == "sd1" and not module.config.global_pool_conditions:
        found.append(
            "named after shuffling, and not pooled as the published network for that is; if it should be, "
            'load it with config={"global_average_pooling": True} (global_pool_conditions in diffusers)'
        )
    return found


def infer(shapes: Shapes, what: str) -> dict[str, Any]:
    """Config entries that follow from the shapes of a ControlNet, or of a U-Net, in diffusers layout.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
    """
    entries = encoder_entries(shapes, what)
    if "controlnet_cond_embedding.conv_in.weight" in shapes:
        shape = partial(shape_of, shapes, what=what)
        first = shape("controlnet_cond_embedding.conv_in.weight")
        pairs = range(1, count(shapes, r"controlnet_cond_embedding\.blocks\.(\d+)\."), 2)
        rest = (shape(f"controlnet_cond_embedding.blocks.{index}.weight")[0] for index in pairs)
        entries["conditioning_channels"] = first[1]
        entries["conditioning_embedding_out_channels"] = (first[0], *rest)
    return entries


def copy_encoder(
    cls: type[ControlNet],
    unet: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any] | ControlNetConfig | None,
    hint_channels: tuple[int, ...],
    conditioning_channels: int,
) -> ControlNet:
    """See `ControlNet.from_unet`."""
    state = unet.state_dict() if isinstance(unet, nn.Module) else unet
    if config is None:
        config = getattr(unet, "config", None)
    if config is None:
        config = infer({name: tuple(tensor.shape) for name, tensor in state.items()}, "unet")
        if "attention_head_dim" not in config:
            raise ParameterError(
                "config",
                found="none",
                expected="the U-Net's config",
                fix="Shapes do not tell the head count.",
            )
    if not isinstance(config, ControlNetConfig):
        config = ControlNetConfig.from_unet_dict(dict(config))
    config = replace(
        config,
        conditioning_embedding_out_channels=tuple(hint_channels),
        conditioning_channels=conditioning_channels,
    )
    with torch.device("meta"):
        module = cls(config)
    copied: dict[str, Tensor] = {}
    for name, target in module.state_dict().items():
        if name.startswith("controlnet_"):
            continue
        if name not in state:
            raise Incomplete(
                "unet", found=f"no {name}", expected="a U-Net's encoder", fix="Check its config."
            )
        if state[name].shape != target.shape:
            raise ShapeMismatch(
                f"unet: {name}",
                found=f"shape {list(state[name].shape)}",
                expected=f"{list(target.shape)}, by the config",
                fix="Give the config of this U-Net.",
            )
        copied[name] = state[name].detach().clone()
    sample = copied["conv_in.weight"]
    zeros = [
        module.controlnet_cond_embedding.conv_out,
        *module.controlnet_down_blocks,
        module.controlnet_mid_block,
    ]
    for conv in (*zeros, *module.controlnet_cond_embedding.modules()):
        if isinstance(conv, nn.Conv2d):
            conv.to_empty(device=sample.device).to(sample.dtype).reset_parameters()
    for conv in zeros:
        for parameter in conv.parameters():
            nn.init.zeros_(parameter)
    copied |= {name: part for name, part in module.state_dict().items() if name.startswith("controlnet_")}
    module.load_state_dict(copied, strict=True, assign=True)
    return module.train().requires_grad_(True)
