"""Which rows and which step is this call of the U-Net? Answered from what the web UI's denoiser announces.

Before it calls the U-Net the denoiser tells all its rows: first those of the prompt (more than one per
picture where a prompt has parts joined by AND), then those of instruct-pix2pix's picture, then those of the
negative prompt. It then runs them in that order, in one call or in several, or leaves out the last.

sd-webui-controlnet tells its own U-Net which rows are which by a token before those of the prompt, which it
takes off again; it is no part of what controls read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from controlkit.contracts import Branch
from controlkit.errors import NotApplicable

_MARK = 1024.0
"""What every number of that token is, with either sign (Mikubill/sd-webui-controlnet@56cec5b2
``scripts/hook.py``, ``mark_prompt_context``)."""


def unmarked(prompt: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The mark before a prompt, and the prompt without it.

    Args:
        prompt: (rows, n, dim), as the U-Net is given it; None where it reads none.

    Returns:
        (rows, 1, dim), or None where there is no mark; and (rows, n - 1, dim) or all of it.
    """
    if prompt is None or prompt.ndim != 3 or prompt.shape[1] < 2:
        return None, prompt
    mark = prompt[:, :1]
    return (mark, prompt[:, 1:]) if bool((mark.abs() == _MARK).all()) else (None, prompt)


@dataclass
class Announced:
    """One denoising step: its rows, of which some were already run.

    Args:
        index: 0-based call of the denoiser in this sampling.
        count: Of how many; adaptive samplers make more than they say, which then count as the last.
        images: Pictures made at once.
        branches: Meaning of each group of ``images`` rows, in order.
        level: Noise level, by which the sampler goes.
        timestep: Whether that is a timestep; else it is sigma.
    """

    index: int
    count: int
    images: int
    branches: tuple[Branch, ...]
    level: float
    timestep: bool
    _taken: int = field(default=0, init=False)

    def take(self, rows: int) -> tuple[Branch, ...] | None:
        """The meaning of the rows of the next call; None where it is none of the announced ones."""
        groups, rest = divmod(rows, self.images)
        parts = self.branches[self._taken : self._taken + groups]
        if rest or len(parts) != groups:
            return None
        self._taken += groups
        return parts


def announced(params: Any) -> Announced:
    """What the web UI's ``CFGDenoiserParams`` say.

    Raises:
        NotApplicable: Several pictures at once, of a prompt with parts joined by AND: their rows are mixed.
    """
    denoiser = params.denoiser
    images, prompts = int(params.text_uncond.shape[0]), int(params.text_cond.shape[0])
    others = int(params.x.shape[0]) - prompts
    if prompts != images and images != 1:
        raise NotApplicable(
            "prompt",
            found=f"{images} pictures at once, whose prompt has parts joined by AND",
            expected="one picture at once, or no AND",
            fix="Set the batch size to 1, and the batch count to as many as you want.",
        )
    first: tuple[Branch, ...] = ("cond",)
    last: tuple[Branch, ...] = ("uncond",) if others == images else ("image", "uncond")
    count = max(int(denoiser.total_steps or 1), 1)
    return Announced(
        index=min(int(denoiser.step), count - 1),
        count=count,
        images=images,
        branches=first * (prompts // images) + last,
        level=float(params.sigma.flatten()[0]),
        timestep=hasattr(denoiser, "alphas"),  # the samplers of the original code go by timesteps
    )
