"""Guidance as a control: the gradient of phi as a shift of the predicted noise.

Source:
    Dhariwal & Nichol (2021), arXiv:2105.05233, section 4.2 and algorithm 2: ε̂ = ε - sqrt(1 - ᾱ_t) s ∇φ.
    Every scheduler can be served by this one formula, because the U-Net's input is the variance-preserving
    x_t in all of them. Where it is not exact (DDPM's ancestral steps, algorithm 1; clipping) the host puts
    the same gradient in its exact place: `controlkit/hosts/stepping.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from controlkit.binding import read_mask
from controlkit.contracts import Active, RunInfo, Slot, Step, Target
from controlkit.errors import BaseMismatch, NotApplicable, ParameterError
from controlkit.guidance.likelihood import BoundPhi, Likelihood, Phi, Sees
from controlkit.strength import Scale, Strength


@dataclass(frozen=True, eq=False)
class Guidance:
    """Steer by any differentiable function: a control without injected features.

    Per acting step it costs one evaluation of ``phi`` and its gradient; none of the U-Net's. With diffusers'
    ``DDPMScheduler`` it shifts the mean of x_{t-1} by σ² s ∇φ, σ² of the scheduler's own variance; with every
    other scheduler the predicted noise by -sqrt(1 - ᾱ) s ∇φ, in DDIM after the clean picture was clipped.

    Args:
        phi: ``phi(x, y, t) -> (images,)``: log-probabilities up to a constant, differentiable in ``x``.
            ``x`` is float32 (float64 where the model is), (images, channels, h, w); ``t`` is (images,), in
            the model's numbering.
        y: Handed to ``phi`` as it is: a class, a text, a map, anything.
        scale: A number, a function of the fraction done, or ``(fraction, scale)`` points; 1 is Bayes' rule.
        start: Fraction of the run at which it begins to act.
        end: Fraction at which it ends.
        sees: ``noisy``: x_t, as the U-Net gets it (variance-preserving). ``clean``: the predicted clean
            latents (x_t - sqrt(1 - ᾱ) ε) / sqrt(ᾱ). ``image``: these decoded to pixels in [-1, 1]. None: what
            a ready-made function asks for, ``noisy`` for any other.
        through_unet: Whether the gradient runs through the U-Net's prediction too. Only False (the
            prediction is held fixed) is supported.
        max_norm: Largest norm of the gradient of one picture; longer ones are shortened to it.
        every: Act on every k-th step of the window.
        mask: A region in [0, 1] in which to act.
        channels: Channels of ``x`` that ``phi`` reads (3 for pixels); U-Nets with others are refused when it
            is attached. None: any.
        name: For reports.

    Raises:
        ParameterError: A value out of its range.
    """

    phi: Phi
    y: Any = None
    scale: Scale = field(default=1.0, kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    end: float = field(default=1.0, kw_only=True)
    sees: Sees | None = field(default=None, kw_only=True)
    through_unet: bool | None = field(default=None, kw_only=True)
    max_norm: float | None = field(default=None, kw_only=True)
    every: int = field(default=1, kw_only=True)
    mask: Any = field(default=None, kw_only=True)
    channels: int | None = field(default=None, kw_only=True)
    name: str = field(default="guidance", kw_only=True)
    strength: Strength = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.phi):
            raise ParameterError(
                "phi",
                found=f"a {type(self.phi).__name__}",
                expected="a function phi(x, y, t) of log-probabilities, shape (images,)",
            )
        if isinstance(self.phi, Likelihood):
            object.__setattr__(self, "y", self.phi.read(self.y))
            object.__setattr__(self, "channels", self.channels or self.phi.channels)
        if self.sees is None:
            object.__setattr__(self, "sees", self.phi.sees if isinstance(self.phi, Likelihood) else "noisy")
        if self.sees not in get_args(Sees):
            raise ParameterError("sees", found=repr(self.sees), expected="'noisy', 'clean' or 'image'")
        if self.through_unet:
            raise NotApplicable(
                "through_unet",
                found="True",
                expected="False, or nothing",
                fix="The gradient is taken with the U-Net's prediction held fixed.",
            )
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise ParameterError("max_norm", found=repr(self.max_norm), expected="a positive number")
        region = None if self.mask is None else read_mask(self.mask)
        strength = Strength(
            self.scale, self.start, self.end, mask=region, every=self.every, largest=float("inf")
        )
        object.__setattr__(self, "strength", strength)

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(("noise",))

    def check(self, target: Target) -> None:
        """Any U-Net whose noise level is known can be guided, if ``phi`` can read what it denoises.

        Raises:
            BaseMismatch: ``phi`` reads another number of channels.
        """
        if isinstance(self.phi, Likelihood):
            self.phi.check(self.name, target)
        if self.sees != "image" and self.channels not in (None, target.channels):
            raise BaseMismatch(
                self.name,
                found=f"guidance by a function of {self.channels} channels",
                expected=f"{target.channels}, as {target.describe()} denoises",
                fix="Use one that was trained on what this model denoises.",
            )

    def bind_phi(self, run: RunInfo) -> BoundPhi:
        """``phi`` of what it sees, the times and the step."""
        if isinstance(self.phi, Likelihood):
            return self.phi.bind(self.name, self.y, run)
        return lambda seen, times, _step: self.phi(seen, self.y, times)

    def prepare(self, run: RunInfo) -> Active:
        counts = {"phi": 0}
        phi = self.bind_phi(run)

        def shift(noise: Tensor, step: Step) -> Tensor:
            counts["phi"] += 1
            gradient = self._gradient(phi, noise, step, run)
            assert step.alpha_bar is not None  # the engine refuses unknown noise levels
            return gradient * -math.sqrt(1.0 - step.alpha_bar)

        return Active(shift=shift, counts=counts)

    def _gradient(self, phi: BoundPhi, noise: Tensor, step: Step, run: RunInfo) -> Tensor:
        """∇φ with respect to x_t, (images, channels, h, w), float32 or float64."""
        if step.alpha_bar is None:
            raise NotApplicable("guidance", found="an unknown noise level", fix="Use a VP scheduler.")
        signal, sigma = math.sqrt(step.alpha_bar), math.sqrt(1.0 - step.alpha_bar)
        times = step.timestep.reshape(-1).expand(step.images)
        precise = torch.promote_types(step.latents.dtype, torch.float32)
        with torch.inference_mode(False), torch.enable_grad():
            x = step.latents.detach().to(precise).clone().requires_grad_(True)
            seen = x if self.sees == "noisy" else (x - sigma * noise.detach().to(precise).clone()) / signal
            if self.sees == "image":
                assert run.decode is not None
                seen = run.decode(seen).to(precise)
            values = phi(seen, times, step)
            if not isinstance(values, Tensor) or values.shape != (step.images,):
                shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ParameterError(
                    "phi",
                    found=f"a result of {shape}",
                    expected=f"({step.images},): one log-probability per picture",
                    fix="Sum or average phi over everything but the first dimension.",
                )
            if not values.requires_grad:
                raise ParameterError(
                    "phi",
                    found="a result without a gradient",
                    expected="one that is differentiable in x",
                    fix="Remove detach(), no_grad, rounding or numpy from phi.",
                )
            (gradient,) = torch.autograd.grad(values.sum(), x)
        if self.max_norm is not None:
            norms = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
            gradient = gradient * (self.max_norm / norms.clamp_min(1e-12)).clamp(max=1.0)
        return gradient
