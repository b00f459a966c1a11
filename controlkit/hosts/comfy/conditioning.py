"""ComfyUI's CONDITIONING: a list of (tokens, entries), to which controls and extra tokens are added.

Nothing that was given is changed: entries are copied, as other nodes may hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Conditioning: TypeAlias = Sequence[Any]


def with_control(control: Any, *conditionings: Conditioning) -> tuple[list[Any], ...]:
    """Conditionings with a control at the end of each chain; chains that were one object stay one.

    That they do lets ComfyUI run both halves of guidance in one call.
    """
    made: dict[int, Any] = {}
    results: list[list[Any]] = []
    for conditioning in conditionings:
        result: list[Any] = []
        for tokens, entries in conditioning:
            before = entries.get("control")
            if id(before) not in made:
                copy = control.copy()
                copy.set_previous_controlnet(before)
                made[id(before)] = copy
            new = {**entries, "control": made[id(before)], "control_apply_to_uncond": False}
            result.append([tokens, new])
        results.append(result)
    return tuple(results)


def with_tokens(conditioning: Conditioning, extra: Callable[[Tensor], Tensor]) -> list[Any]:
    """A conditioning with extra tokens after the text's.

    Controls of other kinds go on reading the text alone.

    Args:
        conditioning: As ComfyUI has it.
        extra: From tokens (1, n, dim) the extra ones (1, m, dim); the same m for both halves, or ComfyUI
            cannot run them in one call.
    """
    result: list[Any] = []
    for tokens, entries in conditioning:
        more = extra(tokens).to(tokens)
        longer = torch.cat([tokens, more.expand(tokens.shape[0], -1, -1)], dim=1)
        plain = entries.get("cross_attn_controlnet", tokens)
        result.append([longer, {**entries, "cross_attn_controlnet": plain}])
    return result


def controls_in(conditioning: Conditioning) -> list[Any]:
    """The last control of every chain in a conditioning, each once."""
    found = [entries["control"] for _, entries in conditioning if entries.get("control") is not None]
    return list({id(control): control for control in found}.values())
