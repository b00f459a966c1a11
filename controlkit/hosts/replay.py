"""The U-Net's call under way, run again on other latents, with gradients where they are on.

Guidance needs it where its gradient runs through the U-Net: pipelines sample without gradients, so that the
call itself has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from controlkit.contracts import Branch, Step, Target
from controlkit.hosts.diffusers import output_sample
from controlkit.residuals import rows_of, select, to_noise

_PLAIN = frozenset(("AttnProcessor", "AttnProcessor2_0", "FusedAttnProcessor2_0", "SlicedAttnProcessor"))
"""Attention processors that treat every row by itself."""


class Replay:
    """One call of a U-Net, to be run again.

    Args:
        unet: The U-Net itself, not its compiled form.
        arguments: Of the call, by name, with what the controls add in them.
        step: The same call as controls see it.
        target: The U-Net, described.
        alone: Whether the conditional rows may run without the others.
    """

    def __init__(
        self, unet: nn.Module, arguments: Mapping[str, Any], step: Step, target: Target, *, alone: bool
    ) -> None:
        self._unet, self._step, self._target = unet, step, target
        self._branch: Branch = "cond" if "cond" in step.branches else step.branches[0]
        self._alone = alone and len(step.branches) > 1 and _rows_are_independent(unet)
        self._arguments = arguments

    def noise(self, latents: Tensor) -> Tensor:
        """The noise predicted on the conditional rows.

        Args:
            latents: (images, channels, h, w), noisy; differentiable where gradients are on.

        Returns:
            The same shape and dtype.
        """
        step = self._step
        rows, branches = step.latents.shape[0], 1 if self._alone else len(step.branches)
        arguments = self._ready(rows)
        sample = cast(Tensor, arguments["sample"])
        noisy = latents.to(sample.dtype).repeat(branches, 1, 1, 1)
        beside = sample[:, self._target.channels :]
        arguments["sample"] = torch.cat([noisy, beside], dim=1) if beside.shape[1] else noisy
        predicted = output_sample(self._unet(**arguments))[:, : self._target.channels]
        if not self._alone:
            predicted = rows_of(predicted, step.branches, (self._branch,))
        part = dataclasses.replace(select(step, (self._branch,)), latents=latents)
        return to_noise(predicted.to(latents.dtype), part, self._target)

    def _ready(self, rows: int) -> dict[str, Any]:
        """Arguments for this call alone: its own lists, no tensors of inference mode, the rows wanted."""

        def ready(value: Any) -> Any:
            if isinstance(value, Tensor):
                part = value
                if self._alone and value.ndim and value.shape[0] == rows:
                    part = rows_of(value, self._step.branches, (self._branch,))
                return part.clone() if part.is_inference() else part
            if isinstance(value, Mapping):
                return {key: ready(item) for key, item in cast(Mapping[str, Any], value).items()}
            if isinstance(value, list | tuple):
                return [ready(item) for item in cast(list[Any], value)]
            return value

        return {name: ready(value) for name, value in self._arguments.items()}


def _rows_are_independent(unet: nn.Module) -> bool:
    """Whether no attention processor may look at other rows, or at the order of all."""
    processors = cast(Mapping[str, Any], getattr(unet, "attn_processors", {}))
    return all(type(processor).__name__ in _PLAIN for processor in processors.values())


def keep_lists(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose lists a U-Net cannot empty, as it does with the features inside the encoder."""
    return {name: list(cast(list[Any], v)) if isinstance(v, list) else v for name, v in arguments.items()}


@contextmanager
def recompute(*models: nn.Module) -> Generator[None]:
    """Gradient checkpointing in models of diffusers while this lasts; afterwards they are as they were.

    It must last until the gradient has been taken. Models that cannot do it are left alone.
    """
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    for model in models:
        before += [(m, {n: vars(m)[n] for n in names if n in vars(m)}) for m in model.modules()]
    try:
        for model in models:
            enable = cast(Callable[[], None] | None, getattr(model, "enable_gradient_checkpointing", None))
            if enable is not None and getattr(model, "_supports_gradient_checkpointing", False):
                enable()
        yield
    finally:
        for module, values in before:
            for name in names:
                if name in values:
                    setattr(module, name, values[name])
                else:
                    vars(module).pop(name, None)
