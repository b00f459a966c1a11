"""The constructor arguments of the original latent diffusion code, as a ``config`` beside original weights.

Shapes tell nearly everything; the arguments matter for the rest (the heads). Those that repeat what shapes
tell are compared with them, so that a config of another network is refused and not half believed.

Source:
    `UNetModel.__init__` in `ldm/modules/diffusionmodules/openaimodel.py` of CompVis/latent-diffusion and
    `ControlNet.__init__` in `cldm/cldm.py`, both of lllyasviel/ControlNet@ed85cd1e; ``adm_in_channels``,
    lists of depths and ``transformer_depth_middle`` of Stability-AI/generative-models `openaimodel.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from controlkit.checkpoints.encoder import ATTENDING
from controlkit.errors import ConfigError, Unsupported

NO_EFFECT = frozenset(
    {
        "ckpt_path",
        "dropout",
        "image_size",
        "legacy",
        "num_heads_upsample",
        "offload_to_cpu",
        "spatial_transformer_attn_type",
        "use_bf16",
        "use_checkpoint",
        "use_fairscale_checkpoint",
        "use_fp16",
        "use_new_attention_order",
    }
)
"""Arguments that change nothing in what is computed from given weights, with spatial transformers."""

_OFF: dict[str, tuple[object, ...]] = {
    "conv_resample": (True,),
    "dims": (2,),
    "disable_middle_self_attn": (False, None),
    "disable_self_attentions": (None, False),
    "n_embed": (None,),
    "num_classes": (None, "sequential"),
    "resblock_updown": (False,),
    "use_scale_shift_norm": (False,),
    "use_spatial_transformer": (True,),
}
"""Arguments for variants that are not implemented, with the values that leave them off."""

_TOLD = (
    "adm_in_channels",
    "attention_resolutions",
    "channel_mult",
    "context_dim",
    "hint_channels",
    "in_channels",
    "model_channels",
    "num_attention_blocks",
    "num_res_blocks",
    "out_channels",
    "transformer_depth",
    "transformer_depth_middle",
    "use_linear_in_transformer",
)
_ASKED = ("num_heads", "num_head_channels", "addition_time_embed_dim", "global_average_pooling")
_KNOWN = frozenset({*NO_EFFECT, *_OFF, *_TOLD, *_ASKED})
_WRAPPERS = ("model", "params", "common")


def arguments_of(config: Mapping[str, Any] | None, stage: str, what: str) -> dict[str, Any]:
    """The constructor's arguments in a config, however deep it nests them.

    Args:
        config: The arguments themselves, or a part or the whole of an original configuration file, which
            nests them under ``model``, ``params``, ``control_stage_config`` and the like.
        stage: Where they are in it: ``control_stage_config`` or ``unet_config``.
        what: The checkpoint's name, for errors.

    Raises:
        ConfigError: An argument that is not known.
        Unsupported: One that switches on a variant that is not implemented.
    """
    found: dict[str, Any] = {}
    level: Mapping[str, Any] = config or {}
    for _ in range(6):
        inner = next((level[key] for key in (stage, *_WRAPPERS) if isinstance(level.get(key), Mapping)), None)
        if inner is None:
            break
        found |= {key: value for key, value in level.items() if key in _KNOWN}
        level = inner
    found |= {key: value for key, value in level.items() if key != "target"}
    for key, value in found.items():
        if key not in _KNOWN:
            raise ConfigError(
                f"{what}: config {key}",
                found=f"the key, with the value {value!r:.60}",
                expected="arguments of the original constructor, such as num_heads or num_head_channels",
                fix="Remove it if it does not change the network; a config.json needs its _class_name.",
                code="CK-L30",
            )
        given = None if isinstance(value, list | tuple) and not any(value) else value
        if key in _OFF and not any(given is off or given == off for off in _OFF[key]):
            raise Unsupported(
                f"{what}: config {key}",
                found=f"{value!r:.60}",
                expected=" or ".join(map(repr, _OFF[key])),
                fix="This variant is not implemented, so it is refused and not loaded wrongly.",
            )
    return found


def heads_of(arguments: Mapping[str, Any], entries: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Heads by the arguments, else as ``entries`` know them, as an entry ``attention_head_dim``.

    Args:
        arguments: Of the constructor. ``num_head_channels`` wins over ``num_heads``, as there; -1: not set.
        entries: What shapes tell, in diffusers' words.
        what: The checkpoint's name, for errors.

    Raises:
        ConfigError: Neither is known, or one does not divide the widths.
    """
    widths: tuple[int, ...] = entries["block_out_channels"]
    kinds = [*entries["down_block_types"][:-1], ATTENDING]  # the middle block attends at the last width
    numbers = {name: _natural(arguments.get(name), f"{what}: config {name}") for name in _ASKED[:3]}
    for name in ("num_head_channels", "num_heads"):
        number = numbers[name]
        if number is None:
            continue
        wrong = [w for w, kind in zip(widths, kinds, strict=True) if kind == ATTENDING and w % number]
        if wrong:
            raise ConfigError(
                f"{what}: config {name}",
                found=f"{number}, which does not divide the width {wrong[0]}",
                expected="a divisor of every width that attends",
                fix="Use the arguments that these weights were trained with.",
                code="CK-L30",
            )
        per_level = tuple(max(1, width // number) for width in widths)
        return {"attention_head_dim": number if name == "num_heads" else per_level}
    if "attention_head_dim" in entries:
        return {"attention_head_dim": entries["attention_head_dim"]}
    raise ConfigError(
        f"{what}: config",
        found=f"no heads, and widths of no published family: {list(widths)}",
        expected="the number of attention heads, which shapes do not tell",
        fix='Give config={"num_heads": …} or config={"num_head_channels": …}, as the original constructor.',
        code="CK-L30",
    )


def size_ids_of(arguments: Mapping[str, Any], entries: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The width of each embedded size id of SDXL, where its conditions are there; empty elsewhere.

    The original embeds them outside the network, so that its arguments do not tell; 256 in every published
    one.

    Raises:
        ConfigError: It is not known.
    """
    if not entries.get("addition_embed_type"):
        return {}
    width = _natural(arguments.get("addition_time_embed_dim"), f"{what}: config addition_time_embed_dim")
    width = width or entries.get("addition_time_embed_dim")
    if width is None:
        raise ConfigError(
            f"{what}: config",
            found=f"conditions {entries['projection_class_embeddings_input_dim']} wide beside the timestep",
            expected="how many of these each embedded size id takes",
            fix='Give config={"addition_time_embed_dim": …}; it is 256 for SDXL.',
            code="CK-L30",
        )
    return {"addition_time_embed_dim": width}


def refuse_contradictions(arguments: Mapping[str, Any], entries: Mapping[str, Any], what: str) -> None:
    """Refuse arguments that say something else than the shapes do.

    Args:
        arguments: Of the constructor.
        entries: What shapes tell, in diffusers' words.
        what: The checkpoint's name, for errors.

    Raises:
        ConfigError: Naming the argument, what it says and what the weights are.
    """
    for name, said, told in _comparisons(arguments, entries):
        if said != told:
            raise ConfigError(
                f"{what}: config {name}",
                found=f"{arguments[name]!r:.80}",
                expected=f"{list(told) if isinstance(told, tuple) else told}, by the shapes of the weights",
                fix="Use the arguments that belong to these weights, or only those that shapes do not tell.",
                code="CK-L30",
            )


def _comparisons(
    arguments: Mapping[str, Any], entries: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Each argument that shapes tell too, as it was given and as they tell it."""
    widths: tuple[int, ...] = entries["block_out_channels"]
    attending = [i for i, kind in enumerate(entries["down_block_types"]) if kind == ATTENDING]
    depths: tuple[int, ...] = entries["transformer_layers_per_block"]
    told = {
        "adm_in_channels": entries.get("projection_class_embeddings_input_dim"),
        "channel_mult": tuple(_whole(width / widths[0]) for width in widths),
        "context_dim": entries.get("cross_attention_dim"),
        "hint_channels": entries.get("conditioning_channels"),
        "in_channels": entries["in_channels"],
        "model_channels": widths[0],
        "num_res_blocks": entries["layers_per_block"],
        "out_channels": entries.get("out_channels"),
        "transformer_depth_middle": depths[-1],
        "use_linear_in_transformer": entries.get("use_linear_projection"),
    }
    for name, value in told.items():
        said = arguments.get(name)
        if said is not None and value is not None:
            if name in ("num_res_blocks", "context_dim") and isinstance(said, list | tuple):
                said = said[0] if len(set(map(repr, said))) == 1 else tuple(said)
            yield name, tuple(said) if isinstance(said, list) else said, value
    if "num_classes" in arguments:
        has_classes = "projection_class_embeddings_input_dim" in entries
        yield "num_classes", arguments["num_classes"], "sequential" if has_classes else None
    depth = arguments.get("transformer_depth")
    listed = isinstance(depth, list | tuple)
    if depth is not None:
        per_level = dict(enumerate(depth)) if listed else dict.fromkeys(range(len(widths)), depth)
        yield "transformer_depth", tuple(map(per_level.get, attending)), tuple(depths[i] for i in attending)
    if (most := arguments.get("num_attention_blocks")) is not None:
        # Blocks from this on have no attention; a decoder has one block more at each level than its encoder.
        blocks = entries["layers_per_block"] + ("out_channels" in entries)
        per_level = dict(enumerate(most)) if isinstance(most, list | tuple) else {}
        said = tuple(per_level.get(level) for level in attending)
        yield "num_attention_blocks", tuple(map(partial(_up_to, blocks), said)), (blocks,) * len(attending)
    if (resolutions := arguments.get("attention_resolutions")) is not None:
        told_here = tuple(2**i for i in attending)
        if isinstance(resolutions, list | tuple):
            idle = {2**i for i, number in enumerate(depth if listed else ()) if number == 0}  # by name alone
            meant = [value for value in resolutions if value not in idle or value in told_here]
            resolutions = tuple(2**i for i in range(len(widths)) if 2**i in meant)
        yield "attention_resolutions", resolutions, told_here


def _up_to(most: int, number: object) -> object:
    return min(number, most) if isinstance(number, int) else number


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _natural(value: Any, what: str) -> int | None:
    """A count of at least one; None where it is not set, for which the original also writes -1."""
    if value is None or (value == -1 and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            what,
            found=f"{value!r:.60}",
            expected="a whole number from 1, or -1 for not set",
            fix="Use the arguments that these weights were trained with.",
            code="CK-L30",
        )
    return value
