"""What the ready-made functions share: reading targets and numbers, and fitting a target to a run once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from controlkit.binding import refuse_meta
from controlkit.contracts import RunInfo, Step, Target
from controlkit.errors import BatchMismatch, ParameterError
from controlkit.guidance.likelihood import BoundPhi, Likelihood, Sees
from controlkit.images import as_map, fit

Network = Callable[..., Any]
"""A module or function that computes logits, features or depth, differentiable in its first argument."""
T = TypeVar("T")


class Compared(Likelihood):
    """A likelihood whose target is fitted to what is seen once per run, and then compared at each step.

    What is seen of the predicted picture is the less certain the noisier x_t is. During a run the variance of
    every comparison with it is therefore divided by ᾱ: the value is multiplied by ᾱ. Without that, and with
    the prediction held fixed, the gradient would be far too long in the first steps: the derivative of
    E[x_0 | x_t] is about sqrt(ᾱ), not 1 / sqrt(ᾱ).
    """

    def count(self, y: Any) -> int:
        """How many pictures the target (as `read` returns it) speaks of; 1 serves all."""
        return len(y)

    def fitted(self, y: Any, seen: Tensor) -> Any:
        """The target at the size, on the device and in the dtype of ``seen``, (images, channels, h, w)."""
        raise NotImplementedError

    def value(self, x: Tensor, goal: Any, t: Tensor) -> Tensor:
        """Log-probabilities (images,) of ``x``, (images, channels, h, w), given the fitted target."""
        raise NotImplementedError

    def __call__(self, x: Tensor, y: Any, t: Tensor) -> Tensor:
        x = precise(x)
        return self.value(x, self.fitted(self.read(y), x), t)

    def bind(self, name: str, y: Any, run: RunInfo) -> BoundPhi:
        check_count(f"{name}: y", self.count(y), run)
        # Fitted at the first step, not here: there the tensors are ordinary ones, even where the run is in
        # inference mode, and the size is known of whatever is seen.
        once = Once(lambda seen: self.fitted(y, seen))

        def phi(seen: Tensor, times: Tensor, step: Step) -> Tensor:
            seen = precise(seen)
            return certainty(self.sees, step) * self.value(seen, once.get(seen), times)

        return phi


def certainty(sees: Sees, step: Step) -> float:
    """ᾱ where the predicted picture is seen, 1 where the noisy one is."""
    return 1.0 if sees == "noisy" or step.alpha_bar is None else step.alpha_bar


class OfNetwork(Compared):
    """What is asked of a network, for a target of whole numbers."""

    network: Network

    def check(self, name: str, target: Target) -> None:
        refuse_empty(self.network, name)

    def fitted(self, y: Any, seen: Tensor) -> Any:
        return placed(y, seen).to(torch.int64)


class Once:
    """What is made of a picture's size, device and dtype alone, made once for each."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self._make = make
        self._made: dict[Any, Any] = {}

    def get(self, seen: Tensor) -> Any:
        """The value for pictures like these."""
        key = (tuple(seen.shape[1:]), seen.device, seen.dtype)
        if key not in self._made:
            with torch.no_grad():
                self._made[key] = self._make(seen)
        return self._made[key]


def precise(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def placed(rows: Tensor, seen: Tensor) -> Tensor:
    """On the device and in the dtype of ``seen``, and no tensor of inference mode, which autograd refuses."""
    rows = rows.to(seen.device, precise(seen).dtype)
    return rows.clone() if rows.is_inference() else rows


def pictures_like(rows: Tensor | list[Tensor], seen: Tensor, *, labels: Any = False) -> Tensor:
    """Pictures (n, channels, H, W), or a list of several sizes, at the size and place of ``seen``."""
    return placed(fit(rows, (seen.shape[-2], seen.shape[-1]), labels=labels)[0], seen)


def read_pictures(y: Any, *, channels: int = 3) -> Tensor | list[Tensor]:
    """The pictures that are wanted, (n, channels, H, W) in [0, 1], or a list where sizes differ.

    Raises:
        HintError: The picture cannot be used.
    """
    return as_map(y, channels=channels, what="y")


def check_count(what: str, count: int, run: RunInfo) -> None:
    """Refuse targets that are neither one for all, nor one per prompt or picture.

    Raises:
        BatchMismatch: The number of pictures is no multiple of ``count``.
    """
    if run.images % count:
        raise BatchMismatch(
            what,
            found=f"{count} targets for {run.images} pictures",
            expected=f"one, or a number that divides {run.images}: one per prompt or per picture",
            fix="Give one for all, or a list with one entry per prompt.",
        )


def positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        ParameterError: Anything else.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not 0 < value < math.inf:
        raise ParameterError(name, found=f"{value!r:.60}", expected="a finite number above 0")
    return float(value)


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """``value``, when it is one of the choices.

    Raises:
        ParameterError: It is not.
    """
    if value not in choices:
        raise ParameterError(
            name, found=f"{value!r:.60}", expected=" or ".join(repr(choice) for choice in choices)
        )
    return value


def read_network(name: str, network: Any) -> Network:
    """A network that can be called.

    Raises:
        ParameterError: It cannot.
    """
    if not callable(network):
        raise ParameterError(
            name,
            found=f"a {type(network).__name__}",
            expected="a module or function, differentiable in its first argument",
        )
    return network


def refuse_empty(network: Any, name: str, _target: Target | None = None) -> None:
    """Refuse a module whose weights are on the meta device.

    Raises:
        DeviceMismatch: They are.
    """
    if isinstance(network, nn.Module):
        refuse_meta(network, name)


def takes_times(network: Network) -> bool:
    """Whether a network is called as net(x, t): its second argument must be given, or is called t or time….

    What takes any number of arguments is called so too.
    """
    call = network.forward if isinstance(network, nn.Module) else network
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return True
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters[:2]):
        return True
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) < 2:
        return False
    return places[1].default is inspect.Parameter.empty or places[1].name.startswith(("t", "sigma"))


def answer(network: Network, x: Tensor, t: Tensor, *, timed: bool, part: str = "logits") -> Tensor:
    """What a network says of pictures, computed where and in what its weights are.

    Args:
        network: The network.
        x: (images, channels, h, w).
        t: (images,).
        timed: Whether it is told the times.
        part: What to take where it answers with an object of several tensors.

    Returns:
        On the device of ``x``, float32 or float64.

    Raises:
        ParameterError: It answered with something else than a tensor of one row per picture.
    """
    place, dtype = place_of(network, x)
    given = x.to(place, dtype)
    found = network(given, t.to(place)) if timed else network(given)
    if not isinstance(found, Tensor):
        found = getattr(found, part, None)
    if not isinstance(found, Tensor) or found.ndim < 2 or found.shape[0] != x.shape[0]:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"no tensor, nor .{part}"
        raise ParameterError("network", found=f"an answer of {kind}", expected=f"{x.shape[0]} rows")
    return precise(found).to(x.device)


def place_of(network: Any, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a network's weights; of ``x`` where it has none."""
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
    return x.device, x.dtype


def squares(error: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean square of (images, channels, h, w) over pixels, weighted by ``where``; summed over channels."""
    per_pixel = (error**2).sum(1, keepdim=True)
    if where is None:
        return per_pixel.mean((1, 2, 3))
    return (per_pixel * where).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp_min(1e-12)


def processing(processor: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, Any]:
    """Mean, deviation and size of an image processor of transformers, or of what has one inside."""
    inner = cast(Any, getattr(processor, "image_processor", processor))
    mean, std = getattr(inner, "image_mean", None), getattr(inner, "image_std", None)
    size = cast(Any, getattr(inner, "crop_size", None) or getattr(inner, "size", None))
    sides = None
    if size is not None:
        get = size.get if hasattr(size, "get") else lambda key: getattr(size, key, None)
        short = get("shortest_edge")
        sides = (short, short) if short else (get("height"), get("width"))
        sides = None if None in sides else sides
    return (tuple(mean) if mean else None), (tuple(std) if std else None), sides
