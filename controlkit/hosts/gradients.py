"""Gradients in hosts that run in inference mode: ComfyUI and Forge.

Tensors made in inference mode can never be saved for a backward pass, and leaving the mode does not change
those that exist. So what gradients pass runs outside it, with such weights exchanged for copies of the same
numbers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def ordinary(module: nn.Module) -> int:
    """Exchange every weight and buffer that inference mode made for a copy that gradients may pass.

    The numbers stay the same, and so do the names; the weights themselves take no gradients.

    Returns:
        How many were exchanged.
    """
    count = 0
    with torch.inference_mode(False), torch.no_grad():
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):  # pyright: ignore[reportPrivateUsage]
                if parameter is not None and parameter.is_inference():
                    copy = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                    part._parameters[name] = copy  # pyright: ignore[reportPrivateUsage]
                    count += 1
            for name, buffer in list(part._buffers.items()):  # pyright: ignore[reportPrivateUsage]
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()  # pyright: ignore[reportPrivateUsage]
                    count += 1
    return count


def ordinary_tensor(value: Any) -> Any:
    """A copy of a tensor that inference mode made; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def outside_inference(*, weights: Iterable[nn.Module] | None = None) -> Generator[None]:
    """Out of inference mode, without gradients.

    Args:
        weights: For gradients through networks that change what they computed in place, as these U-Nets
            do when they add what a ControlNet gives: every tensor that a backward pass will need is copied
            when it is computed, except the weights of these modules, which nothing changes.
            (``torch.autograd.graph.allow_mutation_on_saved_tensors`` copies only what is changed, but knows
            tensors by addresses that are used again, and then gives the wrong one.)
    """
    saved: AbstractContextManager[object] = nullcontext()
    if weights is not None:
        fixed = {tensor.untyped_storage().data_ptr() for module in weights for tensor in module.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            return tensor if tensor.untyped_storage().data_ptr() in fixed else tensor.clone()

        saved = torch.autograd.graph.saved_tensors_hooks(pack, _unpack)
    with torch.inference_mode(False), torch.no_grad(), saved:
        yield


def _unpack(tensor: Tensor) -> Tensor:
    return tensor
