"""The weight files an `IPAdapter` is read from: the originals', whose names are the module's own.

A ``.bin`` holds two dicts, ``image_proj`` and ``ip_adapter``; a safetensors file the same names, joined by
dots. Shapes tell everything but how the resampler's width divides into heads, which is 64 for each in all
published files (``config={"heads": …}`` elsewhere).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from controlkit.adapters.ip_adapter.config import IPAdapterConfig, translated
from controlkit.adapters.ip_adapter.model import IPAdapter
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of
from controlkit.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Plan

_KNOWN = re.compile(
    r"ip_adapter\.\d+\.to_[kv]_ip\.weight"
    r"|image_proj\.(proj|norm|proj\.[023]|proj_in|proj_out|norm_out)\.(weight|bias)"
    r"|image_proj\.latents"
    r"|image_proj\.layers\.\d+\.0\.(norm[12]\.(weight|bias)|to_(q|kv|out)\.weight)"
    r"|image_proj\.layers\.\d+\.1\.(0\.(weight|bias)|[13]\.weight)"
)
_HEAD = 64


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build an IP-Adapter from these tensors.

    Args:
        layout: ``ip-original``.
        shapes: Of all tensors, by name.
        config: What shapes do not tell, or anything of it; in the names of `IPAdapterConfig` or of the
            original's constructors.
        what: The checkpoint's name, for errors.

    Raises:
        Unsupported: A variant that computes something else.
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The config cannot be built, or the resampler's heads are not known.
    """
    from controlkit.checkpoints.formats import Plan

    _refuse_variants(shapes, what)
    built = _config(shapes, config, what)
    widths = _widths(shapes, what)
    refuse_giant(max(built.depth * (built.projection == "resampler"), len(widths)), shapes, what)
    return Plan(lambda: IPAdapter(built, widths), {name: name for name in shapes})


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        built = _config(shapes, config, "")
    except ValueError:
        return "other", dict(config or {})
    return built.base, built.to_dict()


def remarks(module: IPAdapter) -> list[str]:
    """Say so when the weights do nothing."""
    values = [layer.get_parameter("to_v_ip.weight") for layer in module.ip_adapter.values()]
    if all(not value.any() for value in values):
        return ["all its values are zero: it was not trained, and has no effect"]
    return []


def _refuse_variants(shapes: Shapes, what: str) -> None:
    found = None
    if any(name.startswith("image_proj.perceiver_resampler.") for name in shapes):
        found = "an IP-Adapter for faces (FaceID plus)"
    elif "image_proj.norm.weight" in shapes and "image_proj.proj.0.weight" in shapes:
        found = "an IP-Adapter for faces (FaceID)"
    if found is not None:
        raise Unsupported(
            what,
            found=found,
            expected="one that reads an image encoder's embedding",
            fix="It reads the embedding of a face recogniser, which is not done here.",
            code="CK-L20",
        )
    odd = sorted(name for name in shapes if not _KNOWN.fullmatch(name))
    if odd:
        raise Unsupported(
            what,
            found=f"an IP-Adapter with {odd[0]!r:.100}",
            expected="the tensors of the published ones",
            fix="This variant computes something else, so it is refused and not loaded wrongly.",
            code="CK-L20",
        )


def _widths(shapes: Shapes, what: str) -> tuple[int, ...]:
    """Of the cross-attention layers; a layer whose keys are missing is found missing by the loader."""
    number = (count(shapes, r"ip_adapter\.(\d+)\.") + 1) // 2
    refuse_giant(number, shapes, what)
    widths: list[int] = []
    for index in range(number):
        keys, values = (f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight" for part in "kv")
        name = keys if keys in shapes or values not in shapes else values
        widths.append(shapes[name][0] if name in shapes else 1)
    return tuple(widths)


def _config(shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> IPAdapterConfig:
    given = translated(config or {}, f"{what}: config")
    entries = {**_infer(shapes, what), **given}
    if config and "ff_mult" in config and "dim" in entries:  # by the original, the inner width over the outer
        mult = config["ff_mult"]
        number = isinstance(mult, int | float) and not isinstance(mult, bool) and math.isfinite(mult)
        entries["ff_width"] = int(entries["dim"] * mult) if number else mult
    if entries["projection"] == "resampler" and "image_proj.layers.0.0.to_q.weight" in shapes:
        inner = shapes["image_proj.layers.0.0.to_q.weight"][0]
        entries |= _heads(inner, given, what)
    return IPAdapterConfig.from_dict(entries, f"{what}: config")


def _heads(inner: int, given: Mapping[str, Any], what: str) -> dict[str, int]:
    """Number and width of the resampler's heads, of which a config gives one, both or none."""
    if {"heads", "dim_head"} <= given.keys():
        return {}  # whether they fit is seen from the shapes they give
    by_number = "heads" in given
    known: Any = given.get("heads" if by_number else "dim_head", _HEAD)
    if not isinstance(known, int) or isinstance(known, bool) or known < 1 or inner % known:
        raise ConfigError(
            f"{what}: config",
            found=f"a resampler {inner} wide, {'heads' if by_number else 'heads as wide as'} {known!r:.40}",
            expected="heads that divide its width",
            fix='Give config={"heads": …}, which shapes do not tell.',
            code="CK-L30",
        )
    other = inner // known
    return {"heads": known, "dim_head": other} if by_number else {"heads": other, "dim_head": known}


def _infer(shapes: Shapes, what: str) -> dict[str, Any]:
    """Config entries that follow from the shapes.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
    """
    shape = partial(shape_of, shapes, what=what)
    if "image_proj.latents" in shapes:
        layers = count(shapes, r"image_proj\.layers\.(\d+)\.")
        return {
            "projection": "resampler",
            "cross_attention_dim": shape("image_proj.proj_out.weight")[0],
            "embedding_dim": shape("image_proj.proj_in.weight")[1],
            "num_tokens": shape("image_proj.latents")[1],
            "dim": shape("image_proj.latents")[2],
            "depth": layers,
            "ff_width": shape("image_proj.layers.0.1.1.weight")[0],
        }
    if "image_proj.proj.0.weight" in shapes:
        return {
            "projection": "mlp",
            "cross_attention_dim": shape("image_proj.proj.2.weight")[0],
            "embedding_dim": shape("image_proj.proj.0.weight")[1],
        }
    width = shape("image_proj.norm.weight")[0]
    made, embedding = shape("image_proj.proj.weight")
    return {
        "projection": "linear",
        "cross_attention_dim": width,
        "embedding_dim": embedding,
        "num_tokens": made // width,
    }
