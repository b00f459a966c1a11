"""Uni-ControlNet as its first implementation stores it: names, constructor arguments, and saving back.

``uni.ckpt`` holds the base model beside both halves, ``local_adapter.*`` and ``global_adapter.*``; either
half may come in a file of its own.

Source:
    `LocalAdapter` and `GlobalAdapter` in `models/local_adapter.py` and `models/global_adapter.py`, and
    `configs/uni_v15.yaml`, of ShihaoZhaoZSH/Uni-ControlNet@4da003c3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from controlkit.checkpoints.ldm import diffusers_name, layers_of, ldm_name
from controlkit.checkpoints.ldm_config import arguments_of, refuse_contradictions
from controlkit.checkpoints.shapes import Shapes
from controlkit.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from controlkit.adapters.uni_controlnet.model import UniControlNet

LOCAL, GLOBAL = "local_adapter.", "global_adapter."

BESIDE = {
    "model.diffusion_model.": "the base model's U-Net",
    "model_ema.": "running averages of the base model's U-Net",
    "first_stage_model.": "the base model's VAE",
    "cond_stage_model.": "the base model's text encoder",
    "alphas_cumprod": "the noise schedule",
    "betas": "the noise schedule",
    "sqrt_": "the noise schedule",
    "log_one_minus_alphas_cumprod": "the noise schedule",
    "posterior_": "the noise schedule",
    "logvar": "the noise schedule",
    "lvlb_weights": "the noise schedule",
    "scale_factor": "the scale of the latents",
}
"""What the full file holds beside the two halves."""

_GROUPS = 32
_SECTIONS = ("local_control_config", "local", "common", "global_control_config", "global")
_OF_GLOBAL = ("global_control_config", "global")
_LOCAL_ONLY = ("local_channels", "inject_channels", "inject_layers")
_EXTRACTED = 4
"""Features that the original's extractor has, whatever the number of levels."""

_BACK = (
    (re.compile(r"zero_convs\.(\d+)\.0\.(\w+)"), r"controlnet_down_blocks.\1.\2"),
    (re.compile(r"middle_block_out\.0\.(\w+)"), r"controlnet_mid_block.\1"),
    (re.compile(r"feature_extractor\.extractors\.(\d+)\.0\.(\w+)"), r"extractor.levels.\1.\2"),
    (re.compile(r"feature_extractor\.zero_convs\.(\d+)\.(\w+)"), r"extractor.outputs.\1.\2"),
)
_FORTH = (
    (re.compile(r"controlnet_down_blocks\.(\d+)\.(\w+)"), r"zero_convs.\1.0.\2"),
    (re.compile(r"controlnet_mid_block\.(\w+)"), r"middle_block_out.0.\1"),
    (re.compile(r"extractor\.levels\.(\d+)\.(\w+)"), r"feature_extractor.extractors.\1.0.\2"),
    (re.compile(r"extractor\.outputs\.(\d+)\.(\w+)"), r"feature_extractor.zero_convs.\1.\2"),
)
_STEM_BACK = re.compile(r"feature_extractor\.pre_extractor\.(\d*[02468])\.(\w+)")
_STEM_FORTH = re.compile(r"extractor\.stem\.(\d+)\.(\w+)")
_NORM_BACK = re.compile(r"(input_blocks\.\d+\.0)\.norm_(in|out)\.(conv_(?:gamma|beta)\.\w+)")
_NORM_FORTH = re.compile(r"(down_blocks\.\d+\.resnets\.\d+)\.norm([12])\.(conv_(?:gamma|beta)\.\w+)")


def our_names(shapes: Shapes, what: str) -> dict[str, str]:
    """For each of a `UniControlNet`'s parameters in a file of the original layout, the name it has there.

    Args:
        shapes: Of all tensors of the file.
        what: Its name, for errors.

    Raises:
        Incomplete: Too few blocks to tell the structure.
        Unsupported: Tensors that a `UniControlNet` has no place for.
    """
    own = {name.removeprefix(LOCAL): shape for name, shape in shapes.items() if name.startswith(LOCAL)}
    layers = layers_of(own, what) if own else 0
    names: dict[str, str] = {}
    for name in own:
        ours = _our_name(name, layers)
        if ours is None:
            raise Unsupported(
                what,
                found=f"{LOCAL + name!r:.120}, a tensor of another structure",
                expected="residual blocks, each followed by a transformer where its level attends",
                fix="This variant is not implemented, so it is refused and not loaded wrongly.",
                code="CK-L20",
            )
        names[f"local.{ours}"] = LOCAL + name
    theirs = [name for name in shapes if name.startswith(GLOBAL)]
    return names | {f"tokens.{name.removeprefix(GLOBAL)}": name for name in theirs}


def original_state(module: UniControlNet) -> dict[str, Tensor]:
    """See `UniControlNet.original_state`."""
    config = module.local.config if module.has_local else None
    if config is not None and config.norm_num_groups != _GROUPS:
        raise Unsupported(
            "a uni-controlnet in its original layout",
            found=f"norms of {config.norm_num_groups} groups",
            expected=f"{_GROUPS}",
            fix="The original implementation cannot build that; save it with layout='diffusers'.",
        )
    layers = 0 if config is None else config.layers_per_block
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        half, _, rest = name.partition(".")
        state[GLOBAL + rest if half == "tokens" else LOCAL + _original_name(rest, layers)] = tensor
    return state


def arguments(
    config: Mapping[str, Any] | None, told: Mapping[str, Mapping[str, Any]], what: str
) -> dict[str, Any]:
    """The arguments of the local half's constructor, after all that are given were compared with the shapes.

    Args:
        config: Arguments of the local half, flat, with ``in_dim`` of the global one; or in sections
            ``common`` or ``local``, and ``global``; or the original's configuration file, where they are
            under ``local_control_config`` and ``global_control_config``. For a global half alone its own.
        told: What `infer` says.
        what: The checkpoint's name, for errors.

    Raises:
        ConfigError: An argument that is not known, or another value than the shapes have.
        Unsupported: A variant that is not implemented.
    """
    local = told.get("local")
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    rest = _without(config or {}, ours, theirs)
    if local is None and not any(key in rest for key in (*_SECTIONS, "model", "params")):
        theirs, rest = {**rest, **theirs}, {}
    if "tokens" in told:
        dim, hidden = told["tokens"]["dim"], told["tokens"]["hidden"]
        multiples = (hidden // max(1, dim), told["tokens"]["count"])
        _compare(theirs, {"in_dim": dim, "channel_mult": multiples}, what)
    if local is None:
        return {}
    _compare(_in_effect(ours, local), {key: local[key] for key in _LOCAL_ONLY}, what)
    found = arguments_of(rest, "local_control_config", what)
    refuse_contradictions(found, local, what)
    return found


def _without(config: Mapping[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """What the U-Net's constructor has too; the rest is put into ``ours`` and ``theirs``."""
    rest: dict[str, Any] = {}
    for key, value in config.items():
        if key in _LOCAL_ONLY:
            ours[key] = value
        elif key in _OF_GLOBAL and isinstance(value, Mapping):
            inner = value.get("params", value)
            theirs.update({name: entry for name, entry in inner.items() if name != "target"})
        elif key == "in_dim":
            theirs[key] = value
        elif isinstance(value, Mapping):
            rest["local_control_config" if key == "local" else key] = _without(value, ours, theirs)
        else:
            rest[key] = value
    return rest


def _in_effect(ours: Mapping[str, Any], local: Mapping[str, Any]) -> dict[str, Any]:
    """The local half's own arguments, without the entries that change nothing in the original.

    It builds an injected block where ``1 + 3 * level + block`` is listed, whatever the number of blocks of a
    level, and gives each listed layer the feature at its place in the list; layers that are not injected
    blocks do not look at it. So three levels may come with the four layers of the published network.
    """
    read = dict(ours)
    layers, told = ours.get("inject_layers"), local["inject_layers"]
    if isinstance(layers, list | tuple) and tuple(layers[: len(told)]) == told:
        blocks = local["layers_per_block"]
        levels = range(len(local["block_out_channels"]))
        places = ((level, block) for level in levels for block in range(blocks))
        built = [
            1 + level * (blocks + 1) + block for level, block in places if 1 + 3 * level + block in layers
        ]
        read["inject_layers"] = told if tuple(built) == told else layers
    if isinstance(channels := ours.get("inject_channels"), list | tuple):
        read["inject_channels"] = channels[: max(_EXTRACTED, len(local["inject_channels"]))]
    return read


def _compare(given: Mapping[str, Any], told: Mapping[str, Any], what: str) -> None:
    for name, value in given.items():
        said = tuple(value) if isinstance(value, list | tuple) else value
        if name not in told or said != told[name]:
            raise ConfigError(
                f"{what}: config {name}",
                found=f"{value!r:.80}",
                expected=f"{told[name]!r:.80}, by the shapes of the weights"
                if name in told
                else f"arguments of the original constructor: {', '.join(told)}",
                fix="Use the arguments that belong to these weights, or only those that shapes do not tell.",
                code="CK-L30",
            )


def _our_name(name: str, layers: int) -> str | None:
    for pattern, replacement in _BACK:
        if pattern.fullmatch(name):
            return pattern.sub(replacement, name)
    if match := _STEM_BACK.fullmatch(name):  # at the odd places are activations
        return f"extractor.stem.{int(match[1]) // 2}.{match[2]}"
    if match := _NORM_BACK.fullmatch(name):
        block = diffusers_name(f"{match[1]}.emb_layers.1.weight", layers=layers)
        number = {"in": 1, "out": 2}[match[2]]
        return block and block.replace("time_emb_proj.weight", f"norm{number}.{match[3]}")
    return diffusers_name(name, layers=layers)


def _original_name(name: str, layers: int) -> str:
    for pattern, replacement in _FORTH:
        if pattern.fullmatch(name):
            return pattern.sub(replacement, name)
    if match := _STEM_FORTH.fullmatch(name):
        return f"feature_extractor.pre_extractor.{2 * int(match[1])}.{match[2]}"
    if match := _NORM_FORTH.fullmatch(name):
        block = ldm_name(f"{match[1]}.time_emb_proj.weight", layers=layers) or ""
        place = {"1": "in", "2": "out"}[match[2]]
        return block.replace("emb_layers.1.weight", f"norm_{place}.{match[3]}")
    found = ldm_name(name, layers=layers)
    assert found is not None, name
    return found
