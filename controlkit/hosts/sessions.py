"""The engine's runs of one sampling: one for each size and number of pictures that the host calls with.

Areas of a conditioning are pictures of their own size, and some hosts run pictures of a batch apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from controlkit.contracts import RunInfo, Step, Target
from controlkit.engine import Entry, Session


class Sessions:
    """From a sampling's first call of the U-Net to its last.

    Args:
        entries: What acts, with the records that reports are made from.
        target: The U-Net.
        weights: The U-Net's own, by diffusers' names, for controls that are stored as a difference to them.
        decode: Clean latents to pixels in [-1, 1], for guidance that sees the picture.
        recompute: For guidance that saves memory; None: there is no such way.
        map_layout: How the host's own networks are given maps in memory; None: as they come.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        target: Target,
        *,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        recompute: Callable[[], AbstractContextManager[None]] | None = None,
        map_layout: torch.memory_format | None = None,
    ) -> None:
        self.target, self.entries = target, tuple(entries)
        self._weights, self._decode, self._recompute = weights, decode, recompute
        self._map_layout = map_layout
        self._open: dict[tuple[int, ...], Session] = {}

    def of(self, step: Step) -> Session:
        """The run that a call belongs to, begun where this is its first.

        Raises:
            ControlKitError: A control does not fit pictures of this size or number.
        """
        height, width = step.latents.shape[-2:]
        key = (step.images, height, width, step.count)
        if key not in self._open:
            run = RunInfo(
                target=self.target,
                images=step.images,
                height=height,
                width=width,
                steps=step.count,
                device=step.latents.device,
                dtype=step.latents.dtype,
                decode=self._decode,
                weights=self._weights,
                recompute=self._recompute,
                map_layout=self._map_layout,
            )
            self._open[key] = Session(self.entries, run)
        return self._open[key]

    def close(self) -> None:
        """End all of them; harmless when called twice."""
        sessions, self._open = self._open, {}
        for session in sessions.values():
            session.close()
