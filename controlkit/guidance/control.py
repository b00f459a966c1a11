"""Guidance as a control: the gradient of phi as a shift of the predicted noise.

Source:
    Dhariwal & Nichol (2021), arXiv:2105.05233, section 4.2 and algorithm 2: ε̂ = ε - sqrt(1 - ᾱ_t) s ∇φ.
    Every scheduler can be served by this one formula, because the U-Net's input is the variance-preserving
    x_t in all of them. Where it is not exact (DDPM's ancestral steps, algorithm 1; clipping) the host puts
    the same gradient in its exact place: `controlkit/hosts/stepping.py`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

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
        through_unet: Whether the gradient runs through the U-Net too, for ``clean`` and ``image``. False (and
            None): the predicted noise is held fixed; cheap, and right where noise is low. True: exact (Bansal
            et al., equation 5), for one more pass through the U-Net and back, about three times the step's
            cost; for functions that must act at high noise.
        normalize: Bring the gradient of each picture to a root mean square of 1, so that ``scale`` says by
            how much of a standard deviation of the noise it moves, whatever ``phi`` returns.
        max_norm: Largest norm of the gradient of one picture; longer ones are shortened to it.
        inner_steps: Take the gradient so many times, each 1 / inner_steps of the way: the next is taken where
            x_t + (1 - ᾱ) s ∇φ, as far as it is known, leads. As many times the cost.
        recurrence: Do each acting step so many times: denoise, make as noisy as before, denoise again (time
            travel), with DDIM, DDPM, Euler and Euler ancestral. As many times the cost of the whole step.
        checkpointing: Keep no activations of the U-Net and the decoder for the gradient but compute them
            again (gradient checkpointing): less memory, one more pass.
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
    normalize: bool = field(default=False, kw_only=True)
    max_norm: float | None = field(default=None, kw_only=True)
    inner_steps: int = field(default=1, kw_only=True)
    recurrence: int = field(default=1, kw_only=True)
    checkpointing: bool = field(default=False, kw_only=True)
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
        if self.through_unet and self.sees == "noisy":
            raise ParameterError(
                "through_unet",
                found="True for a function that sees the noisy picture",
                expected="sees='clean' or 'image', which the U-Net makes of it",
                fix="Leave it out: what the function sees does not pass the U-Net.",
            )
        for name in ("inner_steps", "recurrence"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ParameterError(name, found=repr(value), expected="a whole number from 1")
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
        if self.sees == "image" and run.decode is None:
            raise NotApplicable(
                self.name, found="sees='image' without a decoder", expected="a pipeline with one"
            )
        counts = {"phi": 0}
        phi, plan = self.bind_phi(run), self.strength.plan(run.steps)

        def shift(noise: Tensor, step: Step) -> Tensor:
            assert step.alpha_bar is not None  # the engine refuses unknown noise levels
            counts["phi"] += self.inner_steps
            gradient = self._gradient(phi, noise, step, run, plan[step.index])
            return gradient * -math.sqrt(1.0 - step.alpha_bar)

        return Active(shift=shift, counts=counts, repeats=self.recurrence)

    def _gradient(self, phi: BoundPhi, noise: Tensor, step: Step, run: RunInfo, scale: float) -> Tensor:
        """∇φ with respect to x_t, float32 or float64: the mean of the inner steps."""
        assert step.alpha_bar is not None
        precise = torch.promote_types(step.latents.dtype, torch.float32)
        recompute = run.recompute if self.checkpointing and run.recompute is not None else nullcontext
        with torch.inference_mode(False), torch.enable_grad(), recompute():
            x, fixed = (part.detach().to(precise).clone() for part in (step.latents, noise))
            total, reach = torch.zeros_like(x), (1.0 - step.alpha_bar) * scale / self.inner_steps
            region = self._region(x)
            for _ in range(self.inner_steps):
                moved = x + total * region * reach
                total = total + self._one(phi, moved.requires_grad_(True), fixed, step, run)
        return total / self.inner_steps if self.inner_steps > 1 else total

    def _region(self, x: Tensor) -> Tensor | float:
        """Where the inner steps move, as the engine will apply it."""
        mask = self.strength.mask
        if mask is None or self.inner_steps == 1:
            return 1.0
        return functional.interpolate(mask.to(x), x.shape[-2:], mode="area")

    def _one(self, phi: BoundPhi, x: Tensor, noise: Tensor, step: Step, run: RunInfo) -> Tensor:
        """The gradient at ``x``, normalised and shortened as wanted."""
        values = phi(self._seen(x, noise, step, run), step.timestep.reshape(-1).expand(step.images), step)
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
        (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        if gradient is None:
            raise ParameterError(
                "phi",
                found="a result that does not depend on x",
                expected="one that is differentiable in x",
                fix="Compute it from the x that phi is given, without a copy made by detach() or numpy.",
            )
        norms = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        if self.normalize:
            gradient = gradient * (math.sqrt(gradient[0].numel()) / norms)
            norms = torch.full_like(norms, math.sqrt(gradient[0].numel()))
        if self.max_norm is not None:
            gradient = gradient * (self.max_norm / norms).clamp(max=1.0)
        return gradient

    def _seen(self, x: Tensor, noise: Tensor, step: Step, run: RunInfo) -> Tensor:
        """What ``phi`` gets: ``x``, or the clean latents or pixels that the U-Net makes of it."""
        if self.sees == "noisy":
            return x
        assert step.alpha_bar is not None
        if self.through_unet:
            assert step.again is not None
            noise = step.again(x)
        clean = (x - math.sqrt(1.0 - step.alpha_bar) * noise) / math.sqrt(step.alpha_bar)
        if self.sees == "clean":
            return clean
        assert run.decode is not None
        return run.decode(clean).to(x.dtype)
