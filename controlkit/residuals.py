"""Arithmetic on residuals, rows and predictions: pure functions that the engine composes.

A step's rows fall into equal parts, one per branch of guidance (`Step.branches`), each with one row per
picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from controlkit.contracts import Branch, Residuals, Step, Target
from controlkit.errors import BaseMismatch, BatchMismatch, NotApplicable


def add(a: Residuals, b: Residuals) -> Residuals:
    """Sum of two sets of residuals; an empty part is nothing. Changes neither."""

    def both(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(p + q for p, q in zip(x, y, strict=True)) if x and y else x or y

    mid = a.mid + b.mid if a.mid is not None and b.mid is not None else b.mid if a.mid is None else a.mid
    return Residuals(both(a.skips, b.skips), mid, both(a.encoder, b.encoder))


def select(step: Step, wanted: tuple[Branch, ...]) -> Step:
    """The step reduced to some of its branches."""

    def part(tensor: Tensor | None) -> Tensor | None:
        batched = tensor is not None and tensor.ndim > 0 and tensor.shape[0] == step.latents.shape[0]
        return rows_of(tensor, step.branches, wanted) if tensor is not None and batched else tensor

    return dataclasses.replace(
        step,
        timestep=part(step.timestep),
        latents=part(step.latents),
        prompt=part(step.prompt),
        tokens=part(step.tokens),
        branches=wanted,
        added={key: part(value) for key, value in step.added.items()},
    )


def to_noise(prediction: Tensor, step: Step, target: Target) -> Tensor:
    """What the U-Net predicts, as predicted noise ε (Salimans & Ho 2022, appendix D, for v)."""
    if target.prediction == "epsilon":
        return prediction
    a, s = _signal_and_noise(step)
    if target.prediction == "v_prediction":
        return a * prediction + s * step.latents
    return (step.latents - a * prediction) / s


def from_noise_shift(shift: Tensor, step: Step, target: Target) -> Tensor:
    """A shift of the noise as a shift of what the U-Net predicts, at fixed x_t.

    With x_t = a x_0 + s ε: dx_0 = -(s / a) dε, and dv = a dε - s dx_0 = dε / a.
    """
    if target.prediction == "epsilon":
        return shift
    a, s = _signal_and_noise(step)
    return shift / a if target.prediction == "v_prediction" else shift * (-s / a)


def _signal_and_noise(step: Step) -> tuple[float, float]:
    if step.alpha_bar is None:
        raise NotApplicable("guidance", found="an unknown noise level", fix="Give attach the scheduler.")
    return math.sqrt(step.alpha_bar), math.sqrt(1.0 - step.alpha_bar)


def check_shapes(name: str, residuals: Residuals, step: Step, target: Target) -> None:
    """Refuse residuals that do not fit the U-Net, before they are silently broadcast or cut."""
    height, width = step.latents.shape[-2:]
    places: list[tuple[str, tuple[Tensor, ...], tuple[int, ...], tuple[int, ...]]] = []
    if residuals.mid is not None:
        tensors = (*residuals.skips, residuals.mid)
        channels = (*target.skip_channels, target.mid_channels)
        strides = (*target.skip_strides, target.skip_strides[-1])
        places.append(("skips and middle", tensors, channels, strides))
    if residuals.encoder:
        number = min(len(target.encoder_channels), max(len(residuals.encoder), len(target.levels)))
        channels, strides = target.encoder_channels[:number], target.encoder_strides[:number]
        places.append(("encoder", residuals.encoder, channels, strides))
    for place, tensors, channels, strides in places:
        if len(tensors) != len(channels):
            raise BaseMismatch(
                name,
                found=f"{len(tensors)} residuals ({place})",
                expected=f"{len(channels)} for {target.describe()}",
                fix="Use a module that was made for this base model.",
            )
        for index, (tensor, width_c, stride) in enumerate(zip(tensors, channels, strides, strict=True)):
            sizes = ((math.ceil(height / stride), math.ceil(width / stride)), (1, 1))
            rows = (step.latents.shape[0], 1)
            fits = tensor.ndim == 4 and tensor.shape[0] in rows and tensor.shape[1] == width_c
            if not fits or tuple(tensor.shape[-2:]) not in sizes:
                raise BaseMismatch(
                    name,
                    found=f"a residual of shape {tuple(tensor.shape)} ({place}, number {index})",
                    expected=f"({rows[0]}, {width_c}, {sizes[0][0]}, {sizes[0][1]}) for {target.describe()}",
                    fix="Use a module made for this base model, and a map of 8 times the latents' size.",
                )


def extend(name: str, step: Step, extra: Tensor) -> Tensor:
    """The step's tokens with extra ones after them.

    Raises:
        BatchMismatch: They do not fit beside the prompt's.
    """
    if step.tokens is None or extra.ndim != 3 or extra.shape[0] not in (1, step.tokens.shape[0]):
        raise BatchMismatch(
            name,
            found=f"extra tokens of shape {tuple(extra.shape)}",
            expected=f"({step.latents.shape[0]}, n, dim) beside the prompt's tokens",
        )
    extra = extra.to(step.tokens).expand(step.tokens.shape[0], -1, -1)
    return torch.cat([step.tokens, extra], dim=1)


def pad(step: Step, count: int) -> Tensor:
    """Tokens of all rows, each with the last ``count`` of its own prompt once more.

    What an earlier control added the same way is counted, so that two controls that add n and m tokens pad
    with the last n + m, as the original does (TencentARC/T2I-Adapter@16bba674
    `ldm/models/diffusion/ddim.py`, `p_sample_ddim`; attention does not depend on their order). A prompt that
    is shorter than that is gone through again.
    """
    tokens, prompt = cast(Tensor, step.tokens), cast(Tensor, step.prompt)
    length, before = prompt.shape[1], tokens.shape[1] - prompt.shape[1]
    places = [length - 1 - (before + i) % length for i in range(count)]
    return torch.cat([tokens, prompt[:, places[::-1]]], dim=1)


def pad_others(step: Step, wanted: tuple[Branch, ...], longer: Tensor) -> Tensor:
    """Tokens of all rows, of which some branches' were extended, brought to one length by `pad`.

    Args:
        step: All rows, before.
        wanted: The branches that were extended.
        longer: (their rows, n, dim), their tokens after.
    """
    padded = pad(step, longer.shape[1] - cast(Tensor, step.tokens).shape[1])
    extended = iter(longer.chunk(len(wanted)))
    parts = zip(step.branches, padded.chunk(len(step.branches)), strict=True)
    return torch.cat([next(extended) if branch in wanted else part for branch, part in parts])


def conditional(branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Those that follow the prompt."""
    return tuple(branch for branch in branches if branch in ("cond", "perturbed"))


def rows_of(tensor: Tensor, branches: tuple[Branch, ...], wanted: tuple[Branch, ...]) -> Tensor:
    """The rows of some branches."""
    chunks = tensor.chunk(len(branches))
    kept = [chunk for chunk, branch in zip(chunks, branches, strict=True) if branch in wanted]
    return kept[0] if len(kept) == 1 else torch.cat(kept)


def spread_rows(part: Tensor, branches: tuple[Branch, ...], wanted: tuple[Branch, ...]) -> Tensor:
    """Rows of the wanted branches put back in place, zeros for the others."""
    chunks = iter(part.chunk(len(wanted)))
    zeros = torch.zeros_like(part[: part.shape[0] // len(wanted)])
    return torch.cat([next(chunks) if branch in wanted else zeros for branch in branches])


def rms(residuals: Residuals) -> float:
    """Root mean square over everything that is added."""
    tensors = [*residuals.skips, *residuals.encoder, *([] if residuals.mid is None else [residuals.mid])]
    norm = cast(Callable[..., Tensor], torch.linalg.vector_norm)  # pyright: ignore[reportUnknownMemberType]
    wide = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    norms = torch.stack(
        [norm(tensor.detach(), dtype=dtype).float() for tensor, dtype in zip(tensors, wide, strict=True)]
    )
    count = sum(tensor.numel() for tensor in tensors)
    return float(norm(norms)) / math.sqrt(max(count, 1))


def dtype_name(residuals: Residuals) -> str:
    """What the residuals were computed in, such as ``float16``."""
    tensor = residuals.mid if residuals.mid is not None else residuals.encoder[0]
    return str(tensor.dtype).removeprefix("torch.")
