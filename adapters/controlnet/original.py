"""ControlNets as their first implementation stores them: names, constructor arguments, and saving back.

The full files of ControlNet 1.0 (``control_sd15_*.pth``) hold the base model beside the ControlNet, those of
1.1 the ControlNet alone under ``control_model.``; extracted ones have no prefix.

Source:
    `ControlNet` in `cldm/cldm.py` of lllyasviel/ControlNet@ed85cd1e.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from controlkit.checkpoints.encoder import ATTENDING, refuse_uneven
from controlkit.checkpoints.ldm import ldm_name, names_from_original
from controlkit.checkpoints.ldm_config import arguments_of, heads_of, refuse_contradictions, size_ids_of
from controlkit.checkpoints.shapes import OTHER_OR_CUT, Shapes
from controlkit.errors import ConfigError, ControlKitWarning, Incomplete, Unsupported

if TYPE_CHECKING:
    from controlkit.adapters.controlnet.model import ControlNet

PREFIX = "control_model."

BESIDE = {
    "model.diffusion_model.": "the base model's U-Net",
    "model_ema.": "running averages of the base model's U-Net",
    "first_stage_model.": "the base model's VAE",
    "cond_stage_model.": "the base model's text encoder",
    "conditioner.": "the base model's text encoders",
    "alphas_cumprod": "the noise schedule",
    "betas": "the noise schedule",
    "sqrt_": "the noise schedule",
    "log_one_minus_alphas_cumprod": "the noise schedule",
    "posterior_": "the noise schedule",
    "logvar": "the noise schedule",
    "lvlb_weights": "the noise schedule",
    "scale_factor": "the scale of the latents",
}
"""What the full files hold beside the ControlNet."""

_FIXED: dict[str, object] = {
    "controlnet_conditioning_channel_order": "rgb",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1.0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
}
"""What the original implementation cannot vary."""


def our_names(shapes: Shapes, what: str) -> dict[str, str]:
    """For each of a `ControlNet`'s parameters in a file of the original layout, the name it has there.

    Args:
        shapes: Of all tensors of the file.
        what: Its name, for errors.

    Raises:
        Incomplete: Too few blocks to tell the structure.
        Unsupported: Tensors that a `ControlNet` has no place for.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in shapes) else ""
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    convs = _hint_convs(own, what)
    found = names_from_original(own, what, lambda name: _our_name(name, convs))
    return {ours: prefix + theirs for ours, theirs in found.items()}


def original_entries(
    told: dict[str, Any], config: Mapping[str, Any] | None, shapes: Shapes, what: str
) -> dict[str, Any]:
    """The entries of a config, in diffusers' words, of a ControlNet in the original layout.

    Args:
        told: What the shapes tell.
        config: Arguments of the original constructor; ``global_average_pooling`` beside them, as in the
            configuration file of the "shuffle" network.
        shapes: In diffusers' names.
        what: The checkpoint's name, for errors.

    Raises:
        ConfigError: They contradict the shapes, or the heads are not known.
        Unsupported: They switch on what is not implemented.
    """
    arguments = arguments_of(config, "control_stage_config", what)
    refuse_contradictions(arguments, told, what)
    refuse_uneven(shapes, told, what)
    pools = arguments.get("global_average_pooling") or False
    if not isinstance(pools, bool):
        raise ConfigError(
            f"{what}: config global_average_pooling", found=f"{pools!r:.60}", expected="true or false"
        )
    known = {**heads_of(arguments, told, what), **size_ids_of(arguments, told, what)}
    return {**told, **known, "global_pool_conditions": pools}


def original_state(net: ControlNet) -> dict[str, Tensor]:
    """See `ControlNet.original_state`."""
    config = net.config
    for name, value in _FIXED.items():
        if getattr(config, name) != value:
            raise _cannot_hold(f"{name} {getattr(config, name)!r}", f"{value!r}")
    widths, last = config.block_out_channels, len(config.block_out_channels) - 1
    levels = [i for i, kind in enumerate(config.down_block_types) if kind == ATTENDING or i == last]
    heads = {config.heads[i] for i in levels}
    per_head = {widths[i] / config.heads[i] for i in levels}
    if len(heads) > 1 and len(per_head) > 1:
        raise _cannot_hold(f"{list(config.heads)} heads", "one number for all levels, or heads of one width")
    if config.global_pool_conditions:
        message = "the original layout does not say that residuals are pooled; load it with config={}".format(
            '{"global_average_pooling": True}'
        )
        warnings.warn(ControlKitWarning(message), stacklevel=4)
    convs = 2 * len(config.conditioning_embedding_out_channels)
    state: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        original = _original_name(name, convs) or ldm_name(name, layers=config.layers_per_block)
        if original is None:
            raise _cannot_hold(name, "parameters that the original has")
        state[PREFIX + original] = tensor
    return state


def _cannot_hold(found: str, expected: str) -> Unsupported:
    return Unsupported(
        "a controlnet in its original layout",
        found=found,
        expected=expected,
        fix="The original implementation cannot build that; save it with layout='diffusers'.",
    )


def _hint_convs(own: Shapes, what: str) -> int:
    """Convolutions of the hint encoder; between them lie activations without weights."""
    matches = (re.match(r"input_hint_block\.(\d{1,6})\.", name) for name in own)
    found = {int(match[1]) for match in matches if match}
    if len(found) < 4 or len(found) % 2 or found != set(range(0, 2 * len(found), 2)):
        raise Incomplete(
            what,
            found=f"convolutions at {sorted(found) or 'no place'} of input_hint_block",
            expected="an even number of them at 0, 2, 4, …",
            fix=OTHER_OR_CUT,
            code="CK-L22",
        )
    return len(found)


def _our_name(name: str, convs: int) -> str | None:
    module, _, leaf = name.rpartition(".")
    if match := re.fullmatch(r"input_hint_block\.(\d{1,6})", module):
        place = int(match[1]) // 2
        inner = "conv_in" if place == 0 else "conv_out" if place == convs - 1 else f"blocks.{place - 1}"
        return f"controlnet_cond_embedding.{inner}.{leaf}"
    if match := re.fullmatch(r"zero_convs\.(\d{1,6})\.0", module):
        return f"controlnet_down_blocks.{match[1]}.{leaf}"
    return f"controlnet_mid_block.{leaf}" if module == "middle_block_out.0" else None


def _original_name(name: str, convs: int) -> str | None:
    module, _, leaf = name.rpartition(".")
    hint = "controlnet_cond_embedding."
    if module.startswith(hint):
        inner = module.removeprefix(hint)
        ends = {"conv_in": 0, "conv_out": convs - 1}
        place = ends[inner] if inner in ends else 1 + int(inner.removeprefix("blocks."))
        return f"input_hint_block.{2 * place}.{leaf}"
    if module.startswith("controlnet_down_blocks."):
        return f"zero_convs.{module.removeprefix('controlnet_down_blocks.')}.0.{leaf}"
    return f"middle_block_out.0.{leaf}" if module == "controlnet_mid_block" else None
