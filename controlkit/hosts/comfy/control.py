"""Our controls as ComfyUI's CONTROL_NET: loaded, chained, moved and cleaned up by ComfyUI itself.

Source:
    The contract of ``comfy.controlnet.ControlBase`` in ComfyUI 0.3.64: ``get_control`` is called with the
    noise level, not the timestep, for conditional and unconditional rows at once; ``pre_run`` before and
    ``cleanup`` after each sampling.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# (what is inherited is ComfyUI's, which is not there for the type checker)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from controlkit.contracts import Control
from controlkit.engine import admit
from controlkit.errors import ParameterError
from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.layout import Lists, as_lists, merged
from controlkit.hosts.comfy.running import Running
from controlkit.hosts.comfy.unet import target_of, weights_of
from controlkit.module import ControlModule, MapModule
from controlkit.report import ControlRecord

_Base: Any = host("comfy.controlnet").ControlBase


class Holder(nn.Module):
    """A module for ComfyUI's memory manager, which writes attributes of its own on what it moves."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def patcher_of(module: nn.Module) -> Any:
    """What ComfyUI's memory manager takes: it loads and offloads the module with the U-Net."""
    management = host("comfy.model_management")
    return host("comfy.model_patcher").ModelPatcher(
        Holder(module).eval(),
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )


class EngineControl(_Base):
    """A control module, and once it is applied what it is bound to.

    Our own node binds it to everything a control can have. ComfyUI's own apply nodes work too: their picture
    is the map, and their start and end are ComfyUI's, shares of the noise levels.

    Args:
        module: The network.
        patcher: Its hold for the memory manager; made where it is not given.
    """

    def __init__(self, module: ControlModule, patcher: Any = None) -> None:
        super().__init__()
        self.module = module
        self.patcher = patcher if patcher is not None else patcher_of(module)
        self.bound: Control | None = None
        self.reads_all = False
        self.record = ControlRecord(module.kind)
        self.running: Running | None = None

    def bind(self, control: Control, *, reads_all: bool = False) -> EngineControl:
        """A copy that does what this control does.

        Args:
            control: What ``module.on(...)`` returned.
            reads_all: Whether its network reads the tokens that were appended to the prompt.
        """
        new = self.copy()
        new.bound, new.reads_all = control, reads_all
        return new

    # --- what ComfyUI calls ---------------------------------------------------------------------------

    def set_cond_hint(self, *args: Any, **kwargs: Any) -> EngineControl:
        """ComfyUI's own apply nodes: a map (B, 3, H, W) in [0, 1], a strength, start and end."""
        super().set_cond_hint(*args, **kwargs)
        self.bound = None
        return self

    def copy(self) -> EngineControl:
        new = type(self)(self.module, self.patcher)
        self.copy_to(new)
        new.bound, new.reads_all = self.bound, self.reads_all
        return new

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self._end()
        control = self._control()
        target = target_of(model)
        admit(control, target)
        self.record = ControlRecord(control.name)  # a report is of the last sampling
        self.running = Running(
            control,
            self.record,
            target,
            model.model_sampling,
            weights=lambda: weights_of(model),
            reads_all=self.reads_all,
        )

    def get_control(
        self,
        x_noisy: Tensor,
        t: Tensor,
        cond: Mapping[str, Any],
        batched_number: int,
        transformer_options: Mapping[str, Any],
    ) -> Lists | None:
        """Everything that this control and those before it in the chain add to a call of the U-Net."""
        before: Lists | None = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(
                x_noisy, t, cond, batched_number, transformer_options
            )
        if self.running is None or self._is_outside(float(t[0])):
            return before
        ours = self.running.residuals(x_noisy, t, cond, transformer_options)
        return merged(as_lists(ours, self.running.target, x_noisy.shape[0]), before) if ours else before

    def get_models(self) -> list[Any]:
        return [*super().get_models(), self.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes for activations: by rule of thumb half of the weights', and what the chain needs."""
        return int(super().inference_memory_requirements(dtype)) + int(self.patcher.model_size()) // 2

    def cleanup(self) -> None:
        super().cleanup()
        self._end()

    # --- ours -------------------------------------------------------------------------------------------

    def _is_outside(self, sigma: float) -> bool:
        """Whether ComfyUI's own start and end leave out this noise level; ours are the engine's."""
        window = self.timestep_range
        return window is not None and (sigma > window[0] or sigma < window[1])

    def _control(self) -> Control:
        if self.bound is None:
            if self.cond_hint_original is None or not isinstance(self.module, MapModule):
                raise ParameterError(
                    "control net",
                    found=f"a {self.module.kind} without what it needs",
                    expected="one that reads a map, bound to it",
                    fix="Apply it with the node made for its kind (ControlKit's, under 'controlkit').",
                )
            hint = cast(Tensor, self.cond_hint_original)
            self.bound = self.module.on(hint.detach().float().clamp(0, 1), scale=float(self.strength))
        return self.bound

    def _end(self) -> None:
        running, self.running = self.running, None
        if running is not None:
            running.close()


def chain(control: Any) -> list[EngineControl]:
    """Those of ours in a chain of ComfyUI's controls, the first applied first."""
    found: list[EngineControl] = []
    while control is not None:
        if isinstance(control, EngineControl):
            found.append(control)
        control = control.previous_controlnet
    return found[::-1]
