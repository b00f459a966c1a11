"""`controlkit.unet`: diffusers' U-Net from a denoiser in its original layout or in diffusers'."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from controlkit.checkpoints.encoder import ATTENDING, PLAIN, encoder_entries, refuse_uneven
from controlkit.checkpoints.formats import Plan, recognise, unwrap
from controlkit.checkpoints.ldm import names_from_original
from controlkit.checkpoints.ldm_config import arguments_of, heads_of, refuse_contradictions, size_ids_of
from controlkit.checkpoints.load import (
    assemble,
    checked_config,
    checked_digest,
    given_config,
    sense_of_shapes,
)
from controlkit.checkpoints.shapes import Shapes, refuse_giant, shape_of_rank
from controlkit.checkpoints.sources import Opened, open_source
from controlkit.errors import (
    ConfigError,
    ConfigMismatch,
    ControlKitWarning,
    KindMismatch,
    MissingExtra,
    ParameterError,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PREFIX = "model.diffusion_model."

_POOLED_TEXT = (2048, 1280)
"""Token widths of SDXL and its refiner, which read pooled text and size ids beside the timestep."""


def unet(
    source: object,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    subfolder: str | None = None,
    weight_name: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
) -> UNet2DConditionModel:
    """Build diffusers' U-Net from a denoiser, so that an original checkpoint can be run.

    The denoiser is found by its tensors: under ``model.diffusion_model.`` in a whole checkpoint (of a base
    model, a ControlNet 1.0, a Uni-ControlNet), by itself, or in diffusers layout. Everything that shapes
    tell is read from them. What it predicts (noise or v) is the scheduler's business and not told here.

    Args:
        source: A state dict, a file, a folder or a hub id, as for `controlkit.load`.
        config: What shapes do not tell: for original layouts in the original constructor's names
            (``num_heads`` or ``num_head_channels``), for diffusers layout in those of its config.json.
            Stable Diffusion 1, 2 and XL need none. Or the path of a JSON file.
        subfolder: Of the folder or repository, such as ``unet``.
        weight_name: Of the weight file in it.
        revision: Branch, tag or commit on the hub.
        dtype: By default what the file holds (float32, float16 or bfloat16).
        device: Where to put it; by default the CPU.
        local_files_only: Do not connect.
        allow_pickle: Unpickle code. Only for files you wrote yourself.

    Returns:
        The U-Net, in evaluation mode, without gradients. U-Nets of guided-diffusion, which diffusers has no
        class for, come as a module of this project with the same call.

    Raises:
        CheckpointError: One of its subclasses says what is wrong: not a denoiser, a weight missing, a
            config that contradicts the shapes, …
        MissingExtra: diffusers is not installed.
        ParameterError: An argument.

    Example:
        >>> unet = ck.unet("control_sd15_canny.pth")  # doctest: +SKIP
        >>> canny = ck.load("control_sd15_canny.pth")  # doctest: +SKIP
        >>> with ck.attach(unet, canny.on(edges)):  # doctest: +SKIP
        ...     noise = unet(latents, timestep, tokens).sample
    """
    if dtype is not None and dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ParameterError("dtype", found=str(dtype), expected="float32, float16 or bfloat16")
    given = given_config(config)
    with open_source(
        source,
        subfolder=subfolder,
        weight_name=weight_name,
        revision=revision,
        local_files_only=local_files_only,
        allow_pickle=allow_pickle,
    ) as opened:
        prefix, notes = unwrap(opened.weights.shapes)
        shapes = {name[len(prefix) :]: shape for name, shape in opened.weights.shapes.items()}
        layout = _layout(shapes, opened)
        entries = checked_config({**(opened.config or {}), **(given or {})})
        if layout == "guided-diffusion":
            from controlkit.adapters.noisy_classifier.unet import load_pixel_unet

            state = {
                name[len(prefix) :]: tensor for name, tensor in opened.weights.read(opened.weights.shapes)
            }
            with sense_of_shapes("a U-Net of guided-diffusion", opened.what):
                module: Any = load_pixel_unet(state, entries or None, opened.what, dtype=dtype, device=device)
        else:
            planner = _plan_original if layout == "ldm" else _plan_diffusers
            with sense_of_shapes("a U-Net", opened.what):
                plan = planner(shapes, entries or {}, opened.what)
            module = assemble(plan, opened, prefix, dtype, device, notes)
        checked_digest(opened)
        notes = [*opened.notes, *opened.weights.notes, *notes]
    for note in notes:
        warnings.warn(f"{opened.what}: {note}", ControlKitWarning, stacklevel=2)
    return module


def _layout(shapes: Shapes, opened: Opened) -> str:
    if any(name.startswith(PREFIX) for name in shapes):
        return "ldm"  # whatever else the file holds
    layout = recognise(shapes, opened.what, config=opened.config)
    if layout.kind != "unet":
        raise KindMismatch(
            opened.what,
            found=layout.title,
            expected="a denoiser: a U-Net, or a checkpoint with one under model.diffusion_model.",
            fix=f"Load it with ck.load({opened.what!r:.80})." if layout.reader else layout.advice,
            code="CK-L20",
        )
    return layout.layout


def _plan_original(shapes: Shapes, config: Mapping[str, Any], what: str) -> Plan:
    prefix = PREFIX if any(name.startswith(PREFIX) for name in shapes) else ""
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    others = {name.partition(".")[0] for name in shapes if not name.startswith(prefix)}
    beside = dict.fromkeys(others, "another part of the file")
    names = {ours: prefix + theirs for ours, theirs in names_from_original(own, what).items()}
    own = {ours: shapes[theirs] for ours, theirs in names.items()}
    told = {**encoder_entries(own, what), "out_channels": shape_of_rank(own, "conv_out.weight", 4, what)[0]}
    whole = "_class_name" in config
    arguments = {} if whole else arguments_of(config, "unet_config", what)
    refuse_contradictions(arguments, told, what)
    refuse_uneven(own, told, what)
    if _embeds_pictures(config if whole else arguments, told):
        told |= {"class_embed_type": "projection", "addition_embed_type": None}
        names = {ours.replace("add_embedding.", "class_embedding."): theirs for ours, theirs in names.items()}
    if whole:
        return _plan(dict(config), own, names, beside, what)
    known = {**heads_of(arguments, told, what), **size_ids_of(arguments, told, what)}
    return _plan({**told, **known, **_rest(own, told)}, own, names, beside, what)


def _embeds_pictures(config: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether what comes beside the timestep are pictures' embeddings (SD 2 unCLIP), and not SDXL's sizes."""
    if not told.get("addition_embed_type"):
        return False
    if "_class_name" in config:
        return config.get("class_embed_type") == "projection"
    has_sizes = told.get("addition_time_embed_dim") or config.get("addition_time_embed_dim")
    return not has_sizes and told.get("cross_attention_dim") not in _POOLED_TEXT


def _plan_diffusers(shapes: Shapes, config: Mapping[str, Any], what: str) -> Plan:
    names = {name: name for name in shapes}
    if "block_out_channels" in config or "_class_name" in config:
        return _plan(dict(config), shapes, names, {}, what)
    told = {
        **encoder_entries(shapes, what),
        "out_channels": shape_of_rank(shapes, "conv_out.weight", 4, what)[0],
    }
    refuse_uneven(shapes, told, what)
    entries = {**told, **_rest(shapes, told), **config}
    if "attention_head_dim" not in entries and not entries.get("num_attention_heads"):
        raise ConfigError(
            f"{what}: config",
            found="no config.json, and widths of no published family",
            expected="the number of attention heads, which shapes do not tell",
            fix='Give config={"attention_head_dim": …}, which in diffusers means the number of heads.',
            code="CK-L30",
        )
    return _plan(entries, shapes, names, {}, what)


def _rest(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Entries for the decoder, and the size of latents that pipelines take where none is asked for."""
    levels = range(len(told["block_out_channels"]))
    attends = [any(name.startswith(f"up_blocks.{level}.attentions.") for name in shapes) for level in levels]
    return {
        "up_block_types": tuple((ATTENDING if attend else PLAIN).replace("Down", "Up") for attend in attends),
        "sample_size": 128 if told.get("cross_attention_dim") in _POOLED_TEXT else 64,
    }


def _plan(
    entries: dict[str, Any], shapes: Shapes, names: Mapping[str, str], beside: Mapping[str, str], what: str
) -> Plan:
    named = entries.get("_class_name")
    if named not in (None, "UNet2DConditionModel"):
        raise ConfigMismatch(
            f"{what}: config _class_name",
            found=f"{named!r:.80}",
            expected="UNet2DConditionModel",
            fix="Use the config.json that came with these weights.",
        )
    settings = {key: value for key, value in entries.items() if not key.startswith("_")}
    for key in ("layers_per_block", "transformer_layers_per_block"):
        refuse_giant(_sum(settings.get(key, 1)), shapes, what)
    try:  # not in build, where every tensor is made on the meta device
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise MissingExtra(
            "unet",
            found="no diffusers",
            expected="its UNet2DConditionModel",
            fix="Install it: pip install diffusers",
        ) from error

    def build() -> Any:
        try:
            return UNet2DConditionModel(**settings)
        except Exception as error:  # its constructor checks little, and fails in many ways
            raise ConfigError(
                f"{what}: config",
                found=f"{type(error).__name__}: {error}"[:300],
                expected="what diffusers' UNet2DConditionModel can be built from",
                fix="Use the config that belongs to these weights.",
                code="CK-L30",
            ) from error

    return Plan(cast(Any, build), names, beside)


def _sum(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_sum, value))
    return value if isinstance(value, int) else 1
