"""Which step is this? Answered from the noise levels that ComfyUI's sampler goes through.

Samplers of second order call the U-Net between two levels; such a call belongs to the step that it is made
for: the one that began at the last level above it.
"""

from __future__ import annotations

from torch import Tensor

_NEAR = 1e-4
"""Levels that differ by less than this share are one: they were rounded on the way."""


def step_at(sigmas: Tensor | None, sigma: float) -> tuple[int, int]:
    """The 0-based step and the number of steps of this run.

    Args:
        sigmas: (steps + 1,), falling, as ``transformer_options["sample_sigmas"]``; None where the sampler
            does not tell: then there is one step.
        sigma: The level of this call.
    """
    if sigmas is None or len(sigmas) < 2:
        return 0, 1
    levels = [float(level) for level in sigmas[:-1]]
    passed = [index for index, level in enumerate(levels) if level >= sigma * (1 - _NEAR)]
    return (passed[-1] if passed else 0), len(levels)
