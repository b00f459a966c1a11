"""Guidance by a class: the log-probability that a classifier gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F

from controlkit.errors import ParameterError
from controlkit.guidance.likelihood import Likelihood, Sees, per_image
from controlkit.guidance.targets import (
    Network,
    OfNetwork,
    answer,
    one_of,
    read_network,
    takes_times,
)

_SEES = ("noisy", "clean", "image")


@dataclass(frozen=True, eq=False)
class ClassLikelihood(OfNetwork):
    """phi = ln softmax(logits)_y of any classifier; see `classifier`."""

    network: Network
    timed: bool
    classes: int | None
    sees: Sees = "noisy"

    def read(self, y: Any) -> Tensor:
        from controlkit.adapters.noisy_classifier.control import read_classes

        return read_classes(y, self.classes or 2**62)

    def value(self, x: Tensor, goal: Tensor, t: Tensor) -> Tensor:
        logits = answer(self.network, x, t, timed=self.timed)
        if logits.ndim != 2:
            raise ParameterError(
                "network", found=f"logits of shape {tuple(logits.shape)}", expected="(images, classes)"
            )
        if bool((goal >= logits.shape[1]).any()):
            raise ParameterError(
                "y", found=f"class {int(goal.max())}", expected=f"a class from 0 to {logits.shape[1] - 1}"
            )
        rows = per_image(goal, x.shape[0])
        return F.log_softmax(logits, dim=-1).gather(1, rows[:, None])[:, 0]


def classifier(network: Any, *, sees: Sees | None = None, classes: int | None = None) -> Likelihood:
    """Towards a class: ln p(y | x, t). The target is a class counted from 0, or one per picture or prompt.

    Costs one pass through the classifier and back per step. At scale 1 it is Bayes' rule; published: 0.5 to
    10 for a classifier that was trained on noisy pictures.

    Args:
        network: A `controlkit.NoisyClassifier`; or net(x, t) or net(x) to logits (images, classes) or an
            object with such ``.logits``. It is told the times ``t`` (images,) when it takes a second argument
            that has no default, or whose name begins with t.
        sees: What it was trained on: ``noisy`` latents (the default), ``clean`` latents, or the ``image``
            (pixels in [-1, 1]).
        classes: Number of classes; None: what the network says of itself, else found at the first step.

    Raises:
        ParameterError: Something that cannot be called, or an unknown ``sees``.

    Source:
        Dhariwal & Nichol (2021), arXiv:2105.05233, section 4.
    """
    from controlkit.adapters.noisy_classifier import NoisyClassifier
    from controlkit.adapters.noisy_classifier.control import ClassLogProbability

    if isinstance(network, NoisyClassifier) and sees in (None, "noisy"):
        return ClassLogProbability(network)
    network = read_network("network", network)
    sees = cast(Sees, one_of("sees", sees or "noisy", _SEES))
    if classes is None:
        config = getattr(network, "config", None)
        named = getattr(network, "classes", None), getattr(config, "num_labels", None)
        classes = next((count for count in named if isinstance(count, int) and count > 0), None)
    elif isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ParameterError("classes", found=f"{classes!r:.60}", expected="a whole number above 0")
    return ClassLikelihood(network, takes_times(network), classes, sees)
