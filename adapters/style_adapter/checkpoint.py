"""The weight files a `StyleAdapter` is read from: the original's names, which are also what is saved here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controlkit.adapters.style_adapter.config import StyleAdapterConfig
from controlkit.adapters.style_adapter.model import StyleAdapter
from controlkit.checkpoints.shapes import Shapes, count, refuse_giant, shape_of_rank
from controlkit.errors import ConfigError

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Plan

_PUBLISHED = StyleAdapterConfig()


def plan(layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
    """How to build a style adapter from these tensors.

    Args:
        layout: ``t2i-original``, the only one.
        shapes: Of all tensors, by name.
        config: Arguments of the original's constructor, all or some; None: told by the shapes, which do
            not tell ``num_head``, except for those of the published file.
        what: The checkpoint's name, for errors.

    Raises:
        Incomplete: Too few tensors to tell the rest.
        ConfigError: The head count is not known, or the config cannot be built.
    """
    from controlkit.checkpoints.formats import Plan

    entries = {**infer(shapes, what), **(config or {})}
    if "num_head" not in entries:
        raise ConfigError(
            f"{what}: config",
            found=f"no config.json, and shapes (width {entries['width']}) of no published style adapter",
            expected="the number of attention heads, which shapes do not tell",
            fix='Give config={"num_head": …}.',
            code="CK-L30",
        )
    built = StyleAdapterConfig.from_dict(entries, f"{what}: config")
    refuse_giant(built.n_layes, shapes, what)
    return Plan(lambda: StyleAdapter(built), {name: name for name in shapes})


def describe(layout: str, shapes: Shapes, config: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Base model and config as far as they can be told."""
    try:
        entries = {**infer(shapes, ""), **(config or {})}
        return StyleAdapterConfig.from_dict({"num_head": 1, **entries}).base, entries
    except ValueError:
        return "other", dict(config or {})


def remarks(module: StyleAdapter) -> list[str]:
    """Nothing: its weights are never all zero."""
    return []


def infer(shapes: Shapes, what: str) -> dict[str, Any]:
    """The constructor's arguments that follow from the shapes.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ShapeMismatch: One of another rank.
    """
    _, tokens, width = shape_of_rank(shapes, "style_embedding", 3, what)
    entries: dict[str, Any] = {
        "width": width,
        "context_dim": shape_of_rank(shapes, "proj", 2, what)[1],
        "n_layes": count(shapes, r"transformer_layes\.(\d+)\."),
        "num_token": tokens,
    }
    is_published = all(getattr(_PUBLISHED, key) == value for key, value in entries.items())
    return entries | ({"num_head": _PUBLISHED.num_head} if is_published else {})
