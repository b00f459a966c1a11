"""Self-recurrence: a step done again from its own result, made as noisy as before.

Source:
    Lugmayr et al. (2022), arXiv:2201.09865, section 4.2 (resampling); Bansal et al. (2023), arXiv:2302.07121,
    section 3.3 (per-step self-recurrence). x_t = sqrt(ᾱ_t / ᾱ_{t-1}) x_{t-1} + sqrt(1 - ᾱ_t / ᾱ_{t-1}) ε; in
    sigma space, x_t = x_{t-1} + sqrt(σ_t² - σ_{t-1}²) ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from controlkit.contracts import Step
from controlkit.errors import NotApplicable, StateError
from controlkit.hosts.replay import keep_lists

KINDS = (
    *("DDIMScheduler", "DDPMScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
)
"""Schedulers that make x_{t-1} from x_t and one prediction, and keep nothing of it."""


def can_recur(scheduler: Any) -> bool:
    """Whether a step of this scheduler can be done again."""
    return any(kind.__name__ in KINDS for kind in type(scheduler).__mro__)


class Repeat:
    """One call of the U-Net within a step, to be done again on other latents, with everything attached.

    Args:
        unet: The U-Net as the pipeline calls it.
        arguments: Of its call, as the pipeline gave them.
        step: The same call as controls see it.
        output: What the pipeline got from it, (rows, channels, h, w).
    """

    def __init__(
        self, unet: Callable[..., Any], arguments: Mapping[str, Any], step: Step, output: Tensor
    ) -> None:
        self._unet, self._arguments, self._step, self._output = unet, keep_lists(arguments), step, output

    def combination(self, given: Tensor, channels: int) -> Tensor:
        """How the loop made what it gave the scheduler from the U-Net's branches: one factor for each.

        Classifier-free guidance of any kind is a linear combination; its factors are found from one instance
        and are right only if they reproduce it.

        Args:
            given: (images, channels or twice that, h, w), the scheduler's ``model_output``.
            channels: Of the noise.

        Raises:
            NotApplicable: It is no such combination.
        """
        parts = self._output[:, :channels].double().chunk(len(self._step.branches))
        wanted = given[:, :channels].double()
        fits = wanted.shape == parts[0].shape
        if fits:
            columns = torch.stack([part.flatten() for part in parts], dim=1)
            found = _least_squares(columns, wanted.flatten())
            off = (columns @ found - wanted.flatten()).square().sum().sqrt()
            allowed = 1e-2 if given.dtype in (torch.float16, torch.bfloat16) else 1e-4
            if bool(off <= allowed * wanted.square().sum().sqrt()):
                return found
        raise NotApplicable(
            "recurrence",
            found="a loop that makes the scheduler's model_output in another way than as a sum of branches of"
            " one U-Net call (guidance_rescale, or the halves one after the other)",
            expected="classifier-free guidance as usual, or none",
            fix="Set guidance_rescale to 0 and run both halves in one batch, or use recurrence=1.",
        )

    def predict(self, x: Tensor, factors: Tensor, given: Tensor) -> Tensor:
        """What the loop would give the scheduler for other latents.

        Args:
            x: (images, channels, h, w), scaled as the U-Net wants them.
            factors: Of `combination`.
            given: The loop's ``model_output`` of the first time, for shape and dtype.
        """
        sample, branches = cast(Tensor, self._arguments["sample"]), len(self._step.branches)
        beside = sample[:, x.shape[1] :]
        noisy = x.to(sample.dtype).repeat(branches, 1, 1, 1)
        arguments = {**keep_lists(self._arguments), "sample": torch.cat([noisy, beside], dim=1)}
        output = self._unet(**arguments)
        whole = cast(Tensor, output[0] if isinstance(output, tuple) else output.sample)
        parts = whole[:, : x.shape[1]].chunk(branches)
        mixed = sum((part.to(given.dtype) * float(f) for part, f in zip(parts, factors, strict=True)), 0.0)
        if given.shape[1] == x.shape[1]:
            return cast(Tensor, mixed)
        last = whole.chunk(branches)[self._step.branches.index("cond") if branches > 1 else 0]
        return torch.cat([cast(Tensor, mixed), last[:, x.shape[1] :].to(given.dtype)], dim=1)


def noisier(
    previous: Tensor,
    noise: Tensor,
    *,
    levels: tuple[float, float] | None = None,
    sigmas: Sequence[float] = (0.0, 0.0),
) -> Tensor:
    """x_t drawn from x_{t-1}: as noisy as the step began.

    Args:
        previous: x_{t-1}.
        noise: Standard normal, of its shape.
        levels: ᾱ_t and ᾱ_{t-1}, of a variance-preserving scheduler.
        sigmas: σ_t and σ_{t-1} of one that works with sigmas, in their place.
    """
    if levels is None:
        return previous + noise * math.sqrt(max(0.0, sigmas[0] ** 2 - sigmas[1] ** 2))
    ratio = levels[0] / levels[1]
    return previous * math.sqrt(ratio) + noise * math.sqrt(max(0.0, 1 - ratio))


def draw(like: Tensor, generator: Any) -> Tensor:
    """Standard normal numbers of a tensor's shape, from one generator or one per picture."""
    several = cast(list[torch.Generator], generator) if isinstance(generator, list) else [generator]
    if len(several) not in (1, like.shape[0]):
        raise StateError(
            "recurrence",
            found=f"{len(several)} generators for {like.shape[0]} pictures",
            expected="one, or one per picture",
            fix="Give the scheduler the generators that the pipeline was given.",
            code="CK-R8",
        )
    shape = like.shape if len(several) == 1 else (1, *like.shape[1:])
    parts = [
        torch.randn(
            shape, generator=one, device=one.device if one is not None else like.device, dtype=like.dtype
        )
        for one in several
    ]
    return torch.cat([part.to(like.device) for part in parts])


def _least_squares(columns: Tensor, wanted: Tensor) -> Tensor:
    """The factors of the columns whose sum is nearest, the smallest ones where several are."""
    normal = columns.T @ columns
    inverse = cast(Tensor, torch.linalg.pinv(normal, hermitian=True, rtol=1e-12))  # pyright: ignore[reportUnknownMemberType]
    return inverse @ (columns.T @ wanted)
