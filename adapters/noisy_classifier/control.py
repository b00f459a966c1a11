"""What a noisy classifier does during a run: the gradient of ln p(y | x_t, t) as guidance.

Source:
    Dhariwal & Nichol (2021), arXiv:2105.05233, section 4; `cond_fn` of openai/guided-diffusion@22e0df81
    `scripts/classifier_sample.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from controlkit.binding import refuse_meta
from controlkit.contracts import RunInfo, Target
from controlkit.errors import BatchMismatch, ParameterError
from controlkit.guidance.likelihood import BoundPhi, Likelihood, per_image

if TYPE_CHECKING:
    from controlkit.adapters.noisy_classifier.model import NoisyClassifier


@dataclass(frozen=True, eq=False)
class ClassLogProbability(Likelihood):
    """phi(x, y, t) = ln p(y | x, t), of a classifier that was trained on noisy pictures.

    The classifier stays on its own device and in its own dtype; the softmax is computed in float32 (or in
    float64, where that is its dtype). Costs one pass through it and back.

    Args:
        classifier: The classifier.
    """

    classifier: NoisyClassifier

    def __call__(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Of (images, channels, H, W), classes (n,) for ``k * n`` images, and times (images,): (images,)."""
        device = next(self.classifier.parameters()).device
        logits = self.classifier(x.to(device), t.to(device))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        classes = per_image(y.to(device), x.shape[0])
        return F.log_softmax(logits, dim=-1).gather(1, classes[:, None])[:, 0].to(x.device)

    @property
    def channels(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.classifier.config.in_channels

    def read(self, y: Any) -> Tensor:
        return read_classes(y, self.classifier.classes)

    def check(self, name: str, target: Target) -> None:
        refuse_meta(self.classifier, name)

    def bind(self, name: str, y: Tensor, run: RunInfo) -> BoundPhi:
        if run.images % len(y):
            raise BatchMismatch(
                f"{name}: y",
                found=f"{len(y)} classes for {run.images} pictures",
                expected=f"one class, or a number that divides {run.images}: one per prompt or per picture",
            )
        self.classifier.check_size(run.target.channels, run.height, run.width)
        return super().bind(name, y, run)


def read_classes(y: int | Sequence[int] | Tensor, count: int) -> Tensor:
    """The classes that ``on`` was given, as (n,) int64.

    Raises:
        ParameterError: None, not whole numbers, or a class that there is not.
    """
    expected = f"a class from 0 to {count - 1}, or one per picture"
    try:
        values = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        raise ParameterError("y", found=f"{y!r:.80}", expected=expected) from None
    whole = not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool
    if not whole or values.ndim > 1 or not values.numel():
        shape = f"{tuple(values.shape)} of {values.dtype}".replace("torch.", "")
        raise ParameterError("y", found=f"shape {shape}", expected=expected)
    values = values.reshape(-1).to("cpu", torch.int64)
    if bool((values < 0).any()) or bool((values >= count).any()):
        wrong = int(values[(values < 0) | (values >= count)][0])
        raise ParameterError("y", found=f"class {wrong}", expected=expected)
    return values
