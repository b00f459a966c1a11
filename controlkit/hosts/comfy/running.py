"""One control during one sampling: ComfyUI's calls become the engine's steps, and its sums come back.

The strength is the engine's: windows and curves count the sampler's steps, not its noise levels, so that a
control acts in the same steps as in every other host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from controlkit.contracts import Branch, Control, Residuals, RunInfo, Step, Target
from controlkit.engine import Entry, Session
from controlkit.hosts.comfy.clock import step_at
from controlkit.report import ControlRecord
from controlkit.residuals import rows_of

REPLAY = "controlkit_replay"
"""Set in ``transformer_options`` while a call is run again for a gradient: what was added stays as it was."""


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
        self._control, self._record, self._sampling = control, record, sampling
        self._weights, self._reads_all = weights, reads_all
        self._sessions: dict[tuple[int, ...], Session] = {}
        self._kept: dict[Any, Residuals] = {}

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
        places: list[int] = list(options.get("cond_or_uncond", (0,)))
        names: list[Any] = list(options.get("uuids", places))
        if options.get(REPLAY):
            return _joined([self._kept.get(name, Residuals()) for name in names])
        step = self._step(x, sigma, cond, options, places)
        done = self._session(step).before(step).residuals
        self._kept = {**self._kept, **_split(done, names, step.latents.shape[0])}
        return done

    def close(self) -> None:
        """End the run; harmless when called twice."""
        sessions, self._sessions, self._kept = self._sessions, {}, {}
        for session in sessions.values():
            session.close()

    def _session(self, step: Step) -> Session:
        """The run of pictures of this size; areas of a conditioning are runs of their own."""
        height, width = step.latents.shape[-2:]
        key = (step.images, height, width, step.count)
        if key not in self._sessions:
            run = RunInfo(
                target=self.target,
                images=step.images,
                height=height,
                width=width,
                steps=step.count,
                device=step.latents.device,
                dtype=step.latents.dtype,
                weights=self._weights,
            )
            self._sessions[key] = Session([Entry(self._control, self._record)], run)
        return self._sessions[key]

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
        branches: list[Branch] = ["cond" if place == 0 else "uncond" for place in places]
        return Step(
            index=index,
            count=count,
            timestep=self._sampling.timestep(sigma).float(),
            latents=self._sampling.calculate_input(sigma, x),
            prompt=prompt,
            tokens=prompt,
            branches=tuple(branches),
            added={} if sized is None else {"embedded": sized.to(x.device)},
            alpha_bar=1.0 / (1.0 + level**2),
        )


def _split(done: Residuals, names: list[Any], rows: int) -> dict[Any, Residuals]:
    """What was added to each conditioning of a call."""
    parts: tuple[Any, ...] = tuple(range(len(names)))

    def part(tensor: Tensor, place: int) -> Tensor:
        return tensor if tensor.shape[0] != rows else rows_of(tensor, parts, (cast(Any, place),))

    return {
        name: Residuals(
            tuple(part(skip, place) for skip in done.skips),
            None if done.mid is None else part(done.mid, place),
            tuple(part(feature, place) for feature in done.encoder),
        )
        for place, name in enumerate(names)
    }


def _joined(parts: list[Residuals]) -> Residuals:
    """The rows of several conditionings one after the other; zeros where one of them had nothing."""
    full = next((part for part in parts if part), None)
    if full is None or len(parts) == 1:
        return parts[0]
    zeros = Residuals(
        tuple(map(torch.zeros_like, full.skips)),
        None if full.mid is None else torch.zeros_like(full.mid),
        tuple(map(torch.zeros_like, full.encoder)),
    )
    whole = [part if part else zeros for part in parts]
    mids = [part.mid for part in whole if part.mid is not None]
    return Residuals(
        tuple(torch.cat(same) for same in zip(*[part.skips for part in whole], strict=True)),
        torch.cat(mids) if mids else None,
        tuple(torch.cat(same) for same in zip(*[part.encoder for part in whole], strict=True)),
    )
