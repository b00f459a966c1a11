"""True regions of the scene, as networks that look for everything answer: masks for each point."""

from __future__ import annotations

import torch

from format_pictures.still_life import SIDE, still_life

LOGIT = 16.0
"""Of a pixel inside; a pixel outside has as much less than none."""
QUALITY = (0.98, 0.96, 0.94)
"""How good each of the three masks is said to be."""


def masks_at(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Three masks for each point: the part that it lies on, and twice the thing.

    Args:
        places: (N, 2), x and y as shares of the picture.

    Returns:
        (N, 3, 256, 256) logits, and (N, 3) qualities.
    """
    truth = still_life()
    masks: list[torch.Tensor] = []
    for across, down in (places.double() * SIDE).long().clamp(0, SIDE - 1).tolist():
        part = torch.from_numpy(truth.parts == truth.parts[down, across])
        thing = torch.from_numpy(truth.things == truth.things[down, across])
        masks.append(torch.stack([part, thing, thing]))
    logits = (torch.stack(masks).float() * 2 - 1) * LOGIT
    return logits, torch.tensor(QUALITY).expand(len(masks), -1)
