"""Controls during one sampling: Forge's calls become the engine's steps, and its sums come back.

Forge asks its ControlNets what they add before each call of the U-Net; after classifier-free guidance it lets
functions change the predicted clean picture. With x = x0 + sigma ε, a shift of the noise by δ is one of x0 by
-sigma δ, the same on both halves; so guidance comes out as in every other host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from controlkit.contracts import Step, Target
from controlkit.engine import Entry
from controlkit.hosts.comfy.kept import REPLAY, Added, Kept
from controlkit.hosts.comfy.layout import Lists, as_lists
from controlkit.hosts.comfy.running import branches_of, signal
from controlkit.hosts.forge.again import again
from controlkit.hosts.forge.model import Place, exchanged
from controlkit.hosts.forge.patches import check_reached, put
from controlkit.hosts.gradients import ordinary_tensor, outside_inference
from controlkit.hosts.sessions import Sessions


@dataclass
class Clock:
    """The denoiser's step, as it announces it; steps are its calls.

    Args:
        index: 0-based.
        count: Of how many; adaptive samplers make more than they say, which then count as the last.
    """

    index: int = 0
    count: int = 1

    def tick(self, denoiser: Any) -> None:
        """Read the step that begins."""
        self.count = max(int(denoiser.total_steps or 1), 1)
        self.index = min(int(denoiser.step), self.count - 1)


class Running:
    """From the sampler's first call to its last.

    Args:
        entries: What acts.
        target: The U-Net.
        predictor: Forge's ``predictor`` of the model: noise levels to timesteps and scaled latents.
        clock: Which step it is.
        places: The cross-attention layers.
        decode: Clean latents to pixels, for guidance.
        decoder: The network that does that.
        weights: The U-Net's own, for controls that are stored as a difference to them.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        target: Target,
        predictor: Any,
        clock: Clock,
        *,
        places: Sequence[Place] = (),
        decode: Callable[[Tensor], Tensor] | None = None,
        decoder: nn.Module | None = None,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.target, self.entries = target, tuple(entries)
        self._predictor, self._clock, self._places, self._decoder = predictor, clock, tuple(places), decoder
        self._sessions, self._kept = Sessions(entries, target, decode=decode, weights=weights), Kept()
        self._last: Added | None = None
        controls = [entry.control for entry in entries]
        self.guides = any("noise" in control.slots for control in controls)
        self.through = any(getattr(control, "through_unet", None) for control in controls)

    def lists(self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], options: dict[str, Any]) -> Lists:
        """What is added to one call of the U-Net, in the lists that it takes it from.

        Args:
            x: (rows, channels, h, w), noisy, as the sampler has them.
            sigma: (rows,), their noise level.
            cond: The call's other arguments by name, ``c_crossattn`` among them.
            options: Forge's ``transformer_options`` of this call; patches of its layers are put into it.
        """
        names: list[int] = list(options.get("cond_or_uncond", (0,)))
        with torch.inference_mode(False), torch.no_grad():
            if options.get(REPLAY):
                added = self._kept.again(names)
            else:
                step = self._step(ordinary_tensor(x), ordinary_tensor(sigma), cond, names)
                made = self._sessions.of(step).before(step)
                extra: Tensor | None = None
                if made.tokens is not None and step.tokens is not None and made.tokens is not step.tokens:
                    extra = made.tokens[:, step.tokens.shape[1] :]
                added = Added(made.residuals, extra, made.attention)
                if self.through:
                    self._kept.keep(names, added, step.latents.shape[0])
                self._last = added
            put(options, added, self._places)
            return as_lists(added.residuals, self.target, x.shape[0])

    def guided(self, args: Mapping[str, Any]) -> Tensor:
        """The predicted clean latents with guidance in them; ``args`` as Forge's post-CFG functions get."""
        denoised: Tensor = args["denoised"]
        sigma = float(args["sigma"].flatten()[0])
        last, self._last = self._last, None
        if last is not None and last.attention is not None:
            check_reached(last.attention, self._places)
        if sigma <= 0 or not (self.guides or (last is not None and last.attention is not None)):
            return denoised
        networks: list[nn.Module] = [args["model"], *([] if self._decoder is None else [self._decoder])]
        if self.through:
            exchanged(args["model"], "U-Net")
        with outside_inference(weights=networks):
            x, predicted = ordinary_tensor(args["input"]), ordinary_tensor(args["cond_denoised"])
            levels = ordinary_tensor(args["sigma"])
            step = Step(
                index=self._clock.index,
                count=self._clock.count,
                timestep=self._predictor.timestep(levels).float(),
                latents=self._predictor.calculate_input(levels, x),
                prompt=None,
                tokens=None,
                branches=("cond",),
                alpha_bar=signal(sigma),
                again=again(args, sigma) if self.through else None,
            )
            shift = self._sessions.of(step).shift((x - predicted) / sigma, step)
            if shift is None:
                return denoised
            return ordinary_tensor(denoised) - sigma * shift.to(denoised)

    def close(self) -> None:
        """End it; harmless when called twice."""
        self._sessions.close()
        self._kept.clear()
        self._last = None

    def _step(self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], names: list[int]) -> Step:
        text: Tensor | None = cond.get("c_crossattn")
        prompt = None if text is None else ordinary_tensor(text.to(x.device))
        sized: Tensor | None = cond.get("y")
        return Step(
            index=self._clock.index,
            count=self._clock.count,
            timestep=self._predictor.timestep(sigma).float(),
            latents=self._predictor.calculate_input(sigma, x),
            prompt=prompt,
            tokens=prompt,
            branches=branches_of(names),
            added={} if sized is None else {"embedded": ordinary_tensor(sized.to(x.device))},
            alpha_bar=signal(float(sigma.flatten()[0])),
        )
