"""One control during one sampling: ComfyUI's calls become the engine's steps, and its sums come back.

The strength is the engine's: windows and curves count the sampler's steps, not its noise levels, so that a
control acts in the same steps as in every other host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from controlkit.adapters.blocks.transformer import attention_by
from controlkit.contracts import Branch, Control, Residuals, Step, Target
from controlkit.engine import Entry
from controlkit.hosts.comfy.clock import step_at
from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.kept import REPLAY, Added, Kept
from controlkit.hosts.comfy.layout import MAPS
from controlkit.hosts.sessions import Sessions
from controlkit.report import ControlRecord


class Running:
    """From the sampler's first call to its last.

    Args:
        control: What acts.
        record: Where its report is made from.
        target: The U-Net.
        sampling: ComfyUI's ``model_sampling`` of the model: noise levels to timesteps and scaled latents.
        weights: The U-Net's own, by diffusers' names, for controls that are stored as a difference to them.
        reads_all: Whether it reads the prompt with the tokens that were appended to it; else the plain one,
            where the conditioning has that.
    """

    def __init__(
        self,
        control: Control,
        record: ControlRecord,
        target: Target,
        sampling: Any,
        *,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
        reads_all: bool = False,
    ) -> None:
        self.target = target
        self._sampling, self._reads_all = sampling, reads_all
        self._sessions = Sessions([Entry(control, record)], target, weights=weights, map_layout=MAPS)
        self._kept = Kept()

    def residuals(
        self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Residuals:
        """What the control adds to one call of the U-Net, scaled; empty where it adds nothing.

        Args:
            x: (rows, channels, h, w), noisy, as the sampler has them.
            sigma: (rows,), their noise level.
            cond: The call's other arguments by name, ``c_crossattn`` among them.
            options: ComfyUI's ``transformer_options``: which rows are conditional, and the run's levels.
        """
        places, names = conditionings(options)
        if options.get(REPLAY):
            return self._kept.again(names).residuals
        step = self._step(x, sigma, cond, options, places)
        with attention_by(_attention):  # as in ComfyUI's own networks, so that the same file gives the same
            done = self._sessions.of(step).before(step).residuals
        self._kept.keep(names, Added(done), step.latents.shape[0])
        return done

    def close(self) -> None:
        """End the run; harmless when called twice."""
        self._sessions.close()
        self._kept.clear()

    def _step(
        self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], options: Mapping[str, Any], places: list[int]
    ) -> Step:
        level = float(sigma.flatten()[0])
        index, count = step_at(options.get("sample_sigmas"), level)
        text: Tensor | None = cond.get("c_crossattn")
        if not self._reads_all and cond.get("crossattn_controlnet") is not None:
            text = cast(Tensor, cond["crossattn_controlnet"])
        prompt = None if text is None else text.to(x.device)
        sized: Tensor | None = cond.get("y")
        return Step(
            index=index,
            count=count,
            timestep=self._sampling.timestep(sigma).float(),
            latents=self._sampling.calculate_input(sigma, x),
            prompt=prompt,
            tokens=prompt,
            branches=branches_of(places),
            added={} if sized is None else {"embedded": sized.to(x.device)},
            alpha_bar=signal(level),
        )


def conditionings(options: Mapping[str, Any]) -> tuple[list[int], list[Any]]:
    """The conditionings of a call, in the order of its rows: 0 for conditional, 1 for others; and names."""
    places: list[int] = list(options.get("cond_or_uncond", (0,)))
    return places, list(options.get("uuids", places))


def branches_of(places: list[int]) -> tuple[Branch, ...]:
    """What the parts of a call are to controls."""
    branches: list[Branch] = ["cond" if place == 0 else "uncond" for place in places]
    return tuple(branches)


def signal(sigma: float) -> float:
    """ᾱ of a noise level: x = x0 + sigma ε is √ᾱ x0 + √(1 - ᾱ) ε, but for its length."""
    return 1.0 / (1.0 + sigma**2)


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """ComfyUI's attention, which its command line chooses."""
    return host("comfy.ldm.modules.attention").optimized_attention(query, key, value, heads)
