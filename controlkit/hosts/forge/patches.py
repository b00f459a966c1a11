"""Tokens after the prompt's, and image prompts, in the cross-attention layers of Forge's U-Net.

Forge hands every call of its U-Net a dictionary of functions that its layers ask. What is put there lasts for
that call alone, and nothing is left on the model. Functions of other extensions stay: theirs run as before,
and ours add to what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from controlkit.attention import ExtraAttentions
from controlkit.errors import NotApplicable
from controlkit.hosts.comfy.kept import Added
from controlkit.hosts.forge.model import Place
from controlkit.hosts.webui.host import host


def put(options: dict[str, Any], added: Added, places: Sequence[Place]) -> None:
    """Have one call of the U-Net attend to more.

    Args:
        options: Forge's ``transformer_options`` of that call; what is in it is not changed but replaced.
        added: What to attend to.
        places: The cross-attention layers, in the order of `controlkit.contracts.Target.attention`.
    """
    if added.tokens is not None:
        patches: dict[str, Any] = dict(options.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", []), _widen(added.tokens)]
        options["patches"] = patches
    if added.attention is not None:
        replaced: dict[str, Any] = dict(options.get("patches_replace", {}))
        layers: dict[Any, Any] = dict(replaced.get("attn2", {}))
        for number, place in enumerate(places):
            before = layers.get(place, layers.get(place[:2]))
            layers[place] = _attend(number, added.attention, before or _own)
        replaced["attn2"] = layers
        options["patches_replace"] = replaced


def check_reached(extra: ExtraAttentions | None, places: Sequence[Place]) -> None:
    """Refuse a picture in which a layer was passed by.

    Raises:
        NotApplicable: Something replaced that layer, and did not ask ours.
    """
    missed = [] if extra is None else [place for i, place in enumerate(places) if i not in extra.reached]
    if missed and extra is not None:
        raise NotApplicable(
            ", ".join(term.name for term in extra.terms),
            found=f"a cross-attention layer ({missed[0]}) that did not ask for more",
            expected="all layers to",
            fix="Switch off the extension that replaces the U-Net's cross-attention.",
        )


def _widen(extra: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def widen(
        queries: Tensor, context: Tensor, value: Tensor, _options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        more = extra.to(context)
        longer = torch.cat([context, more], dim=1)
        return queries, longer, longer if value is context else torch.cat([value, more], dim=1)

    return widen


def _attend(number: int, extra: ExtraAttentions, before: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> Tensor:
        return extra.add(number, before(query, key, value, options), query, int(options["n_heads"]))

    return attend


def _own(query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Forge's own attention, which its command line chooses."""
    return host("backend.attention").attention_function(query, key, value, int(options["n_heads"]))
