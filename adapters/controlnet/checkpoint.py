"""The weight files a `ControlNet` is read from, and how one begins as a copy of a U-Net's encoder.

Only diffusers layout so far. What shapes tell is read from them; the number of attention heads is not in
them, so it is known for published families and asked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from controlkit.adapters.controlnet.config import ATTENDING, PLAIN, ControlNetConfig
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of
from controlkit.errors import ConfigError, Incomplete, ParameterError, ShapeMismatch

if TYPE_CHECKING:
    from controlkit.adapters.controlnet.model import ControlNet
    from controlkit.checkpoints.formats import Plan

_PUBLISHED: dict[tuple[tuple[int, ...], int], dict[str, Any]] = {
    ((320, 640, 1280, 1280), 768): {"attention_head_dim": 8},
    ((320, 640, 1280, 1280), 1024): {"attention_head_dim": (5, 10, 20, 20)},
    ((320, 640, 1280), 2048): {"attention_head_dim": (5, 10, 20), "addition_time_embed_dim": 256},
}
"""By widths and token width: what the shapes of SD 1, SD 2 and SDXL do not tell."""


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a ControlNet from these tensors.

    Args:
        layout: ``diffusers``.
        shapes: Of all tensors, by name.
        config: Entries of config.json, all or some; None: told by the shapes.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The config describes far more than there is, or the head count is not known.
    """
    from controlkit.adapters.controlnet.model import ControlNet
    from controlkit.checkpoints.formats import Plan

    config = config or {}
    complete = "block_out_channels" in config or "_class_name" in config
    entries = dict(config) if complete else {**infer(shapes, what), **config}
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
    return Plan(lambda: ControlNet(built), {name: name for name in shapes})


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        entries = dict(config) if config else infer(shapes, "")
    except Incomplete:
        return "other", {}
    wide = {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}
    try:
        return ControlNetConfig.from_dict({"attention_head_dim": 1, **wide}).base, entries
    except ValueError:
        return "other", entries


def remarks(module: ControlNet) -> list[str]:
    """Say so when the weights do nothing."""
    convs = [*module.controlnet_down_blocks, module.controlnet_mid_block]
    if all(not parameter.any() for conv in convs for parameter in conv.parameters()):
        return ["all its output convolutions are zero: it was not trained, and has no effect"]
    return []


def infer(shapes: Shapes, what: str) -> dict[str, Any]:
    """Config entries that follow from the shapes of a ControlNet, or of a U-Net, in diffusers layout.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
    """

    shape = partial(shape_of, shapes, what=what)
    levels = range(count(shapes, r"down_blocks\.(\d+)\."))
    widths = tuple(shape(f"down_blocks.{level}.resnets.0.conv1.weight")[0] for level in levels)
    attends = [
        any(name.startswith(f"down_blocks.{level}.attentions.") for name in shapes) for level in levels
    ]
    mid_attends = any(name.startswith("mid_block.attentions.") for name in shapes)
    depths = [
        count(shapes, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.")
        for level in levels
    ]
    if mid_attends:
        depths[-1] = count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    entries: dict[str, Any] = {
        "in_channels": shape("conv_in.weight")[1],
        "block_out_channels": widths,
        "layers_per_block": count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": tuple(ATTENDING if attend else PLAIN for attend in attends),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if mid_attends else "UNetMidBlock2D",
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
    }
    keys = [name for name in shapes if name.endswith("attn2.to_k.weight")]
    projections = [name for name in shapes if name.endswith("attentions.0.proj_in.weight")]
    if keys and projections:
        entries["cross_attention_dim"] = shape(keys[0])[1]
        entries["use_linear_projection"] = len(shape(projections[0])) == 2
    if "controlnet_cond_embedding.conv_in.weight" in shapes:
        first = shape("controlnet_cond_embedding.conv_in.weight")
        pairs = range(1, count(shapes, r"controlnet_cond_embedding\.blocks\.(\d+)\."), 2)
        rest = (shape(f"controlnet_cond_embedding.blocks.{index}.weight")[0] for index in pairs)
        entries["conditioning_channels"] = first[1]
        entries["conditioning_embedding_out_channels"] = (first[0], *rest)
    if "add_embedding.linear_1.weight" in shapes:
        entries["addition_embed_type"] = "text_time"
        entries["projection_class_embeddings_input_dim"] = shape("add_embedding.linear_1.weight")[1]
        entries.setdefault("cross_attention_dim", 2048)  # the small SDXL networks have no attention to ask
    return {**entries, **_PUBLISHED.get((widths, entries.get("cross_attention_dim", 0)), {})}


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
