"""What a ready-made function of guidance is: ln p(y | x) that knows what it reads and checks its target.

`Guidance` takes any function phi(x, y, t). One that is a `Likelihood` also says what it wants to see, refuses
a target it cannot use when it is bound instead of in the middle of a run, and does once per run what need not
be done at each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from controlkit.contracts import RunInfo, Step, Target

Sees = Literal["noisy", "clean", "image"]
Phi = Callable[[Tensor, Any, Tensor], Tensor]
BoundPhi = Callable[[Tensor, Tensor, Step], Tensor]


class Likelihood:
    """phi(x, y, t) = ln p(y | x), up to a constant. Base of the ready-made ones; override what differs.

    Attributes:
        sees: What of the run ``x`` is, unless `Guidance` is told otherwise: ``noisy``, ``clean`` or
            ``image``.
        channels: Channels of ``x``; None: any. Pixels have 3.
    """

    sees: Sees = "noisy"
    channels: int | None = None

    def __call__(self, x: Tensor, y: Any, t: Tensor) -> Tensor:
        """Log-probabilities (images,) of pictures (images, channels, h, w) at times (images,)."""
        raise NotImplementedError

    def read(self, y: Any) -> Any:
        """The target as the function wants it, from what the user gave.

        Raises:
            ControlKitError: It cannot be used; the message says what is needed.
        """
        return y

    def check(self, name: str, target: Target) -> None:
        """Refuse a U-Net that the function cannot work with.

        Raises:
            ControlKitError: Why not.
        """

    def bind(self, name: str, y: Any, run: RunInfo) -> BoundPhi:
        """The function of what it sees, the times and the step, for one run.

        Args:
            name: Of the control, for errors.
            y: What `read` returned.
            run: What is known when the run begins.

        Raises:
            ControlKitError: The target does not fit the run.
        """
        return lambda seen, times, _step: self(seen, y, times)


def per_image(rows: Tensor, images: int) -> Tensor:
    """One row per picture, of (n, …) rows where n divides the number of pictures, prompt by prompt."""
    return rows if rows.shape[0] == images else rows.repeat_interleave(images // rows.shape[0], dim=0)
