"""The conditional half of a step run once more, for a gradient through Forge's U-Net.

Forge runs everything in inference mode; here nothing is. What controls added stays as it was: ours is kept,
and Forge's own ControlNets are run again without gradients, on what they were given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from controlkit.errors import NotApplicable
from controlkit.hosts.comfy.kept import REPLAY
from controlkit.hosts.gradients import ordinary_tensor
from controlkit.hosts.webui.host import host


class Held:
    """A chain of Forge's controls whose part in a call is constant.

    Args:
        head: The last added of the chain.
    """

    previous_controlnet = None

    def __init__(self, head: Any) -> None:
        self._head = head
        self.transformer_options: dict[str, Any] = {}

    def get_control(self, x: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int) -> Any:
        """What the chain adds, without gradients."""
        link = self._head
        while link is not None:
            link.transformer_options = self.transformer_options
            link = link.previous_controlnet
        with torch.no_grad():
            lists = self._head.get_control(x.detach(), t, cond, batched_number)
        if lists is None:
            return None
        return {name: [ordinary_tensor(part) for part in parts] for name, parts in lists.items()}


def again(args: Mapping[str, Any], sigma: float) -> Callable[[Tensor], Tensor]:
    """The noise that the U-Net predicts on the conditional rows, for other latents of the same level.

    Args:
        args: As Forge's post-CFG functions get them.
        sigma: The noise level.
    """

    def noise(latents: Tensor) -> Tensor:
        conds: list[dict[str, Any]] = args["cond"]
        if len(conds) != 1:
            raise NotApplicable(
                "guidance",
                found=f"a prompt of {len(conds)} parts, and a gradient through the U-Net",
                expected="a prompt in one part",
                fix="Leave out AND and regions, or the gradient through the U-Net.",
            )
        options = dict(args["model_options"])
        options["transformer_options"] = {**options.get("transformer_options", {}), REPLAY: True}
        x = latents * math.sqrt(1.0 + sigma**2)
        level = ordinary_tensor(args["sigma"])
        batch = host("backend.sampling.sampling_function").calc_cond_uncond_batch
        clean, _ = batch(args["model"], [_constant(cond) for cond in conds], None, x, level, options)
        return (x - clean) / sigma

    return noise


def _constant(cond: Mapping[str, Any]) -> dict[str, Any]:
    """A conditioning with ordinary tensors, and its controls held."""
    plain = dict(cond)
    plain["model_conds"] = {
        name: part._copy_with(ordinary_tensor(part.cond)) for name, part in cond["model_conds"].items()
    }
    if plain.get("control") is not None:
        plain["control"] = Held(plain["control"])
    return plain
