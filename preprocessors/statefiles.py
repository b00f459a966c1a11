"""Weight files of detectors into their networks: every weight, each of its shape and finite, or an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from controlkit.errors import Incomplete, KindMismatch, NonFinite, ShapeMismatch

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    Network = TypeVar("Network", bound=torch.nn.Module)

_PREFIXES = ("", "module.", "depth_model.", "depth_model.module.")
"""What published files put before names: wrappers of torch and of training code."""
_COUNTERS = ".num_batches_tracked"
"""Buffers that older files lack, and that networks which only answer do not use."""


def filled(
    network: Network,
    path: Path,
    detector: str,
    *,
    named: Callable[[str], str] = str,
    left_out: str = "",
    others: bool = False,
) -> Network:
    """A network with the weights of a file, ready to answer.

    Args:
        network: Of the right architecture.
        path: A file of ``torch.save`` or safetensors; a dict of tensors, or one that holds it under
            ``state_dict``, ``model`` or ``depth_model``, with or without ``module.`` before each name.
        detector: Its name, for errors.
        named: From a name in the network to the name in the file.
        left_out: The last part of names that may be in the file or not, as they are computed.
        others: Whether tensors that the network does not have may be in the file.

    Raises:
        CheckpointError: The file is damaged, would run code, or is not a whole set of this network's weights.
    """
    import torch

    from controlkit.checkpoints.weights import open_weights

    what = f"{detector}: {path}"
    own = {named(name): (name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    own = {name: kept for name, kept in own.items() if not _is_left_out(name, left_out)}
    with ExitStack() as stack:
        weights = open_weights([path], stack, allow_pickle=False)
        there = weights.shapes
        prefix = max(_PREFIXES, key=lambda each: sum(each + name in there for name in own))
        missing = [name for name in own if prefix + name not in there and not name.endswith(_COUNTERS)]
        known = {name.removeprefix(prefix): name for name in there if name.startswith(prefix)}
        surplus = [name for name in known if name not in own and not _is_left_out(name, left_out)]
        if missing and len(missing) >= len(own) // 2:
            raise KindMismatch(
                what,
                found=f"the weights of another network, such as {next(iter(there))!r:.80}",
                expected=f"those of a {type(network).__name__}, such as {missing[0]!r:.80}",
                fix="Give the file that was published for this detector.",
            )
        if missing:
            raise Incomplete(
                what,
                found=f"{len(missing)} of {len(own)} weights missing, such as {missing[0]!r:.80}",
                expected=f"all weights of a {type(network).__name__}",
                fix="Download the file again.",
            )
        if surplus and not others:
            raise KindMismatch(
                what,
                found=f"{len(surplus)} weights more than it has, such as {surplus[0]!r:.80}",
                expected=f"the weights of a {type(network).__name__}",
                fix="Give the file that was published for this detector.",
            )
        pairs = {known[name]: kept for name, kept in own.items() if name in known}
        for name, (_, shape) in pairs.items():
            if there[name] != shape:
                raise ShapeMismatch(
                    what,
                    found=f"{name!r:.80} of shape {there[name]}",
                    expected=f"{shape}, as a {type(network).__name__} has it",
                    fix="Give the file that was published for this detector.",
                )
        state: dict[str, torch.Tensor] = {}
        for name, tensor in weights.read(pairs):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFinite(
                    what,
                    found=f"{name!r:.80}, which has NaN or infinity in it",
                    expected="finite weights",
                    fix="Download the file again.",
                )
            state[pairs[name][0]] = tensor
    torch.nn.Module.load_state_dict(network, state, strict=False)
    return network.float().eval().requires_grad_(False)


def in_float32(network: Network) -> Network:
    """Make a network answer in float32 wherever it computes, as what follows outside of torch needs it."""
    network.register_forward_hook(lambda _network, _given, answer: _widened(answer))
    return network


def _widened(answer: Any) -> Any:
    import torch

    if isinstance(answer, (tuple, list)):
        return type(answer)(_widened(each) for each in answer)
    return answer.float() if isinstance(answer, torch.Tensor) and answer.is_floating_point() else answer


def _is_left_out(name: str, last: str) -> bool:
    return bool(last) and name.rpartition(".")[2] == last
