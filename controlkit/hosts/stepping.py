"""In front of the scheduler's own step: guidance at its exact place, on x_{t-1}, and steps done again.

Sampling given y draws x_{t-1} = mu + σ² s ∇φ + σ ε. A shift of the predicted noise gives the same only where
the scheduler does not clip the predicted clean picture, and where σ is known before it steps; so for the two
schedulers that make x_{t-1} from one prediction, what guidance adds is added to what their ``step`` returns.
Others (Euler, DPM++, UniPC, …) keep predictions from step to step and get the noise shift.

Source:
    Sohl-Dickstein et al. (2015), arXiv:1503.03585, appendix C; Dhariwal & Nichol (2021), arXiv:2105.05233,
    algorithms 1 and 2; `condition_mean` and `condition_score` of openai/guided-diffusion@22e0df81
    `guided_diffusion/gaussian_diffusion.py`, which do not clip what was guided. Variances as `DDPMScheduler`
    and `DDIMScheduler` of diffusers 0.42 have them.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from controlkit.errors import StateError
from controlkit.hosts.recurrence import Repeat, draw, noisier


def steps_exactly(scheduler: Any) -> bool:
    """Whether guidance is added after this scheduler's step: DDPM, and DDIM where it clips."""
    kinds = {kind.__name__ for kind in type(scheduler).__mro__}
    config = getattr(scheduler, "config", {})
    clips = bool(config.get("clip_sample") or config.get("thresholding"))
    return "DDPMScheduler" in kinds or ("DDIMScheduler" in kinds and clips)


class Stepping:
    """Stands in front of one scheduler's ``step`` while guidance is in force."""

    def __init__(self) -> None:
        self._scheduler: Any = None
        self._own: Any = None
        self._held: tuple[int, float, Tensor] | None = None
        self._repeat: tuple[int, float, Repeat, int] | None = None
        self._repeating = False

    def install(self, scheduler: Any) -> None:
        """Stand in front of this scheduler's ``step``; harmless when that is so already."""
        if self._scheduler is scheduler:
            return
        self.remove()
        self._own = cast(dict[str, Any], vars(scheduler)).get("step")
        scheduler.step = _Step(scheduler.step, self, scheduler)
        self._scheduler = scheduler

    def remove(self) -> None:
        """Leave the scheduler exactly as it was."""
        scheduler, self._scheduler, self._held, self._repeat = self._scheduler, None, None, None
        if scheduler is None:
            return
        if self._own is None:
            cast(dict[str, Any], vars(scheduler)).pop("step", None)
        else:
            scheduler.step = self._own
        self._own = None

    def hold(self, index: int, timestep: Tensor, gradient: Tensor) -> None:
        """Keep what the step that comes adds: s ∇φ, (images, channels, h, w).

        A second call for one step (a loop that runs the halves of classifier-free guidance one after the
        other) takes the place of the first.
        """
        self._held = (index, float(timestep.flatten()[0]), gradient)

    def repeat(self, index: int, timestep: Tensor, call: Repeat, times: int) -> None:
        """Let the step that comes be done so many times in all, with this call of the U-Net."""
        if not self._repeating:
            self._repeat = (index, float(timestep.flatten()[0]), call, times)

    def expect_taken(self, index: int, *, fresh: bool) -> None:
        """Refuse a loop that went on to another step without the scheduler's ``step``.

        Raises:
            StateError: It did, so that guidance would have had no effect.
        """
        waiting = [part[0] for part in (self._held, self._repeat) if part is not None]
        missed = [] if fresh else [begun for begun in waiting if begun != index]
        if fresh or missed:
            self._held = self._repeat = None
        if missed:
            raise StateError(
                "guidance",
                found=f"a loop that did not call the scheduler's step after step {missed[0] + 1}",
                expected="scheduler.step of the scheduler that attach knows, where guidance is added",
                fix="Step with it, or attach with another scheduler than DDPM, which shifts the noise.",
                code="CK-R8",
            )

    def finish(self, output: Any, original: Any, scheduler: Any, options: dict[str, Any]) -> Any:
        """Guide a step that was done, and do it again as often as it is to be done.

        Args:
            output: What the scheduler's own ``step`` returned.
            original: That ``step``.
            scheduler: The scheduler.
            options: All arguments of the call, by name.

        Returns:
            What the last time returned.
        """
        output = self.guided(scheduler, output, options)
        waiting, self._repeat = self._repeat, None
        if waiting is None or not _is_at(options, waiting[1]):
            return output
        _, _, call, times = waiting
        given, timestep = cast(Tensor, options["model_output"]), options["timestep"]
        channels = cast(Tensor, options["sample"]).shape[1]
        combination = call.combination(given, channels)
        self._repeating = True
        try:
            for _ in range(times - 1):
                previous = _previous(output)
                noise = draw(previous, options.get("generator"))
                entry = getattr(scheduler, "step_index", None)
                if entry is None:
                    levels = alpha_bars(scheduler, options)
                    x = noisier(previous, noise, levels=levels)
                else:  # it counts its steps, and works with sigmas
                    scheduler._step_index = entry = entry - 1
                    x = noisier(previous, noise, sigmas=scheduler.sigmas[entry : entry + 2].tolist())
                predicted = call.predict(scheduler.scale_model_input(x, timestep), combination, given)
                again = {**options, "model_output": predicted, "sample": x}
                output = self.guided(scheduler, original(**again), again)
        finally:
            self._repeating = False
        return output

    def guided(self, scheduler: Any, output: Any, options: dict[str, Any]) -> Any:
        """What ``step`` returned, with guidance added."""
        held = self._held
        if held is None or not _is_at(options, held[1]):
            return output
        self._held = None
        previous = _previous(output)
        gradient = held[2].repeat(previous.shape[0] // held[2].shape[0], 1, 1, 1).to(previous.device)
        on_previous, on_clean = factors(scheduler, options)
        shifted = (previous + gradient * on_previous).to(previous.dtype)
        if isinstance(output, tuple):
            _, clean, *rest = cast(tuple[Any, ...], output)
            return (shifted, clean if on_clean is None else clean + gradient * on_clean, *rest)
        output.prev_sample = shifted
        if on_clean is not None:
            output.pred_original_sample = output.pred_original_sample + gradient * on_clean
        return output


class _Step:
    """A scheduler's ``step`` that looks like the one it stands for, and refuses to be copied."""

    def __init__(self, original: Any, stepping: Stepping, scheduler: Any) -> None:
        functools.update_wrapper(self, original)
        self._original, self._stepping, self._scheduler = original, stepping, scheduler
        kind = cast(Any, type(scheduler))
        self._signature = inspect.signature(kind.step)  # what stands there may take anything

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._original(*args, **kwargs)
        given = self._signature.bind(self._scheduler, *args, **kwargs)
        given.apply_defaults()
        _, *options = given.arguments.items()  # without self
        return self._stepping.finish(output, self._original, self._scheduler, dict(options))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise StateError(
            "scheduler",
            found="guidance attached while it is being pickled or copied",
            expected="a scheduler without",
            fix="Leave the with block (or call run.detach()) first.",
            code="CK-R11",
        )


def factors(scheduler: Any, options: dict[str, Any]) -> tuple[Tensor | float, float | None]:
    """What s ∇φ is multiplied by in x_{t-1}, and in the predicted clean picture, None where that is left.

    With DDPM the variance of the step. With DDIM, whose noise is shifted by -sqrt(1 - ᾱ) s ∇φ, what that does
    when nothing is clipped: (1 - ᾱ) / sqrt(ᾱ) on the clean picture, and sqrt(ᾱ') times that less
    sqrt((1 - ᾱ' - σ²) (1 - ᾱ)) on x_{t-1}.

    Args:
        scheduler: It has just stepped.
        options: All arguments of its ``step``, by name.
    """
    now, then = alpha_bars(scheduler, options)
    if "eta" not in options:
        return _variance(scheduler, now, then, options), None
    variance = options["eta"] ** 2 * (1 - then) / (1 - now) * (1 - now / then)
    direction = math.sqrt(max(0.0, 1 - then - variance))
    clean = (1 - now) / math.sqrt(now)
    return math.sqrt(then) * clean - direction * math.sqrt(1 - now), clean


def alpha_bars(scheduler: Any, options: dict[str, Any]) -> tuple[float, float]:
    """ᾱ_t and ᾱ_{t-1} of a step of DDPM or DDIM."""
    timestep = int(options["timestep"])
    if "eta" not in options:
        previous, beyond = int(scheduler.previous_timestep(timestep)), 1.0
    else:
        previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        beyond = float(scheduler.final_alpha_cumprod)
    return _alpha_bar(scheduler, timestep), _alpha_bar(scheduler, previous, beyond)


def _previous(output: Any) -> Tensor:
    """x_{t-1} of what a scheduler's ``step`` returned."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output.prev_sample)


def _is_at(options: dict[str, Any], timestep: float) -> bool:
    return float(torch.as_tensor(options["timestep"]).flatten()[0]) == timestep


def _alpha_bar(scheduler: Any, timestep: int, beyond: float = 1.0) -> float:
    return float(scheduler.alphas_cumprod[timestep]) if timestep >= 0 else beyond


def _variance(scheduler: Any, now: float, then: float, options: dict[str, Any]) -> Tensor | float:
    """σ² of a step of DDPM. The last one adds no noise, and takes the least variance of the one before."""
    largest = 1 - now / then
    smallest = (1 - then) / (1 - now) * largest
    kind = scheduler.variance_type
    if kind in ("fixed_large", "fixed_large_log"):
        return largest if smallest else _last(scheduler, largest)
    output, sample = cast(Tensor, options["model_output"]), cast(Tensor, options["sample"])
    channels = sample.shape[1]
    if not kind.startswith("learned") or output.shape[1] != 2 * channels:
        return smallest
    predicted = output[:, channels:]
    if kind == "learned":
        return predicted
    share = (predicted + 1) / 2
    low = math.log(smallest or _last(scheduler, largest))
    return torch.exp(share * math.log(largest) + (1 - share) * low)


def _last(scheduler: Any, otherwise: float) -> float:
    """The posterior's variance at the last step but one, in whose place the last has 0."""
    if len(scheduler.timesteps) < 2:
        return otherwise
    before, last = (_alpha_bar(scheduler, int(timestep)) for timestep in scheduler.timesteps[-2:])
    return (1 - last) / (1 - before) * (1 - before / last)
