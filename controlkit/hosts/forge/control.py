"""Our controls as one more of Forge's ControlNets: chained, begun and ended by Forge itself.

Source:
    The contract of ``backend.patcher.controlnet.ControlBase`` in Forge f2.0.1: ``pre_run`` before and
    ``cleanup`` after each sampling, ``get_control`` before each call of the U-Net, with the noise level and
    not the timestep, for conditional and unconditional rows at once.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# (what is inherited is Forge's, which is not there for the type checker)

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from controlkit.engine import Entry
from controlkit.hosts.comfy.layout import Lists, merged
from controlkit.hosts.forge.running import Running
from controlkit.hosts.webui.host import host

_Forge: Any = host("backend.patcher.controlnet")
_Base: Any = _Forge.ControlBase


class EngineControl(_Base):
    """Controls in force during one sampling.

    Args:
        running: What they do.
        ended: Called when anything goes wrong, before the error is passed on.
    """

    def __init__(self, running: Running, ended: Callable[[], None]) -> None:
        super().__init__()
        self.running: Running | None = running
        self._entries, self._ended = running.entries, ended

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int
    ) -> Lists | None:
        """Everything that this and those before it in the chain add to a call of the U-Net."""
        try:
            before: Lists | None = None
            if self.previous_controlnet is not None:
                before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number)
            if self.running is None or self._is_outside(float(t[0])):
                return before
            ours = self.running.lists(x_noisy, t, cond, self.transformer_options)
            return merged(_Forge.compute_controlnet_weighting(ours, self), before)
        except BaseException:
            self._ended()
            raise

    def guided(self, args: Mapping[str, Any]) -> Tensor:
        """Forge's post-CFG function."""
        if self.running is None:
            return args["denoised"]
        try:
            return self.running.guided(args)
        except BaseException:
            self._ended()
            raise

    def watched(self, before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
        """Forge's wrapper of its U-Net's calls, for the sake of their errors; what was there is called.

        Args:
            before: The wrapper that was there, or None.
        """

        def run(apply: Callable[..., Tensor], args: Mapping[str, Any]) -> Tensor:
            try:
                if before is not None:
                    return before(apply, args)
                return apply(args["input"], args["timestep"], **args["c"])
            except BaseException:
                self._ended()
                raise

        return run

    def inference_memory_requirements(self, dtype: Any) -> int:
        """Bytes that Forge must leave free for what this and those before it in the chain run."""
        modules = {getattr(entry.control, "module", None) for entry in self._entries}
        tensors = [
            t for module in modules if isinstance(module, nn.Module) for t in module.state_dict().values()
        ]
        own = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return int(super().inference_memory_requirements(dtype)) + own

    def cleanup(self) -> None:
        """Forge's end of a sampling: what was kept for it is freed; another may follow."""
        super().cleanup()
        if self.running is not None:
            self.running.close()

    def close(self) -> None:
        """End the sampling: from now on it adds nothing; harmless when called twice."""
        running, self.running = self.running, None
        if running is not None:
            running.close()

    def _is_outside(self, sigma: float) -> bool:
        """Whether the window of Forge's own panel leaves out this noise level; ours are the engine's."""
        if self.timestep_percent_range == (0.0, 1.0) or self.timestep_range is None:
            return False
        return sigma > self.timestep_range[0] or sigma < self.timestep_range[1]


class Refusal(_Base):
    """An error that ends the picture: Forge reports those of scripts to its console and goes on.

    Args:
        error: What is wrong.
        ended: Called before it is raised.
    """

    def __init__(self, error: Exception, ended: Callable[[], None]) -> None:
        super().__init__()
        self._error, self._ended = error, ended

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        self._ended()
        raise self._error


class Hold:
    """What of ours is on Forge's model: a copy of its U-Net's patcher with one control more.

    Args:
        model: Forge's ``sd_model``.
        control: The control.
        entries: What it does, for the report.
    """

    def __init__(self, model: Any, control: Any, entries: Sequence[Entry] = ()) -> None:
        self._model, self._before = model, model.forge_objects.unet
        self.control, self.entries = control, tuple(entries)
        self.patcher = self._before.clone()
        self.patcher.add_patched_controlnet(control)
        if isinstance(control, EngineControl):
            before = self.patcher.model_options.get("model_function_wrapper")
            self.patcher.set_model_unet_function_wrapper(control.watched(before))

    def install(self) -> None:
        """Have Forge sample with it."""
        self._model.forge_objects.unet = self.patcher

    def remove(self) -> None:
        """Put the model's own back, unless Forge or someone else already did; and end the control."""
        objects = getattr(self._model, "forge_objects", None)
        if objects is not None and objects.unet is self.patcher:
            objects.unet = self._before
        if isinstance(self.control, EngineControl):
            self.control.close()
