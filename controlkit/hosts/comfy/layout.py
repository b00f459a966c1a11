"""What controls add, in the lists that ComfyUI's U-Net takes it from.

Its U-Net pops from the *end* of three lists while it runs: ``input`` once per block of the encoder,
``middle`` once, ``output`` once per block of the decoder. So ``output`` goes from the first skip to the
deepest, and ``input`` the other way round, the first block's last; None where nothing is added. The lists
are emptied by that, so each call gets fresh ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from controlkit.contracts import Residuals, Target

Lists: TypeAlias = dict[str, list[Tensor | None]]
MAPS = torch.channels_last
"""How ComfyUI's pictures lie in memory: (n, H, W, 3), seen as (n, 3, H, W)."""


def as_lists(residuals: Residuals, target: Target, rows: int) -> Lists:
    """Residuals in ComfyUI's lists.

    Args:
        residuals: What is to be added, scaled.
        target: The U-Net.
        rows: Of its call; one row is spread over them.
    """

    def full(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[0] == rows else tensor.expand(rows, -1, -1, -1)

    depth = len(target.skip_channels)
    inputs: list[Tensor | None] = [None] * depth
    middle: Tensor | None = None if residuals.mid is None else full(residuals.mid)
    for feature, position in zip(residuals.encoder, target.encoder_positions, strict=False):
        if position < depth:
            inputs[position] = full(feature)
        else:
            middle = full(feature) if middle is None else middle + feature
    return {
        "input": inputs[::-1] if residuals.encoder else [],
        "middle": [] if middle is None else [middle],
        "output": [full(skip) for skip in residuals.skips],
    }


def merged(ours: Lists, theirs: Lists | None) -> Lists:
    """The sum of two sets of lists, in new lists; neither is changed.

    Lists of different lengths meet at their ends, where the U-Net takes from.
    """
    if theirs is None:
        return ours
    return {key: _sum(ours.get(key, []), theirs.get(key, [])) for key in ("input", "middle", "output")}


def _sum(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> list[Tensor | None]:
    length = max(len(ours), len(theirs))
    pairs = zip(_padded(ours, length), _padded(theirs, length), strict=True)
    return [b if a is None else a if b is None else b + a for a, b in pairs]


def _padded(values: Sequence[Tensor | None], length: int) -> list[Tensor | None]:
    return [*[None] * (length - len(values)), *values]
