"""Stand-ins for the parts of Forge that our code touches, with the contract of f2.0.1 and nothing more."""

from __future__ import annotations

import copy
import sys
from contextlib import AbstractContextManager
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.hosts.forge.stand_in_unet import UNet, attention

SIGMAS = (14.0, 7.0, 3.0, 1.0, 0.0)
"""Noise levels of a run of four steps."""


class ControlBase:
    """What Forge's ControlNets derive from."""

    def __init__(self) -> None:
        self.cond_hint_original: Any = None
        self.strength = 1.0
        self.timestep_percent_range = (0.0, 1.0)
        self.timestep_range: Any = None
        self.transformer_options: dict[str, Any] = {}
        self.previous_controlnet: Any = None

    def set_cond_hint(
        self, cond_hint: Any, strength: float = 1.0, timestep_percent_range: Any = (0.0, 1.0)
    ) -> Any:
        self.cond_hint_original, self.strength = cond_hint, strength
        self.timestep_percent_range = timestep_percent_range
        return self

    def set_previous_controlnet(self, controlnet: Any) -> Any:
        self.previous_controlnet = controlnet
        return self

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        self.timestep_range = tuple(map(percent_to_timestep_function, self.timestep_percent_range))
        if self.previous_controlnet is not None:
            self.previous_controlnet.pre_run(model, percent_to_timestep_function)

    def inference_memory_requirements(self, dtype: Any) -> int:
        return 0

    def cleanup(self) -> None:
        if self.previous_controlnet is not None:
            self.previous_controlnet.cleanup()
        self.timestep_range = None


class Constant(ControlBase):
    """A ControlNet of someone else's, that adds a number to the middle."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def get_control(
        self, x: Tensor, t: Tensor, cond: Any, batched_number: int
    ) -> dict[str, list[Tensor | None]]:
        assert self.transformer_options["cond_or_uncond"], "Forge gives every one of a chain its options"
        rows, _, height, width = x.shape
        middle = torch.full((rows, 16, height // 2, width // 2), self.value)
        return {"input": [], "middle": [middle], "output": []}


def weighted(control: dict[str, list[Any]], cnet: Any) -> dict[str, list[Any]]:
    """A mask over what is added; else as it is."""
    mask = getattr(cnet, "advanced_mask_weighting", None)
    if mask is None:
        return control

    def masked(part: Tensor | None) -> Tensor | None:
        return None if part is None else part * nn.functional.interpolate(mask, part.shape[-2:])

    return {name: [masked(part) for part in parts] for name, parts in control.items()}


class Condition:
    """A part of a conditioning."""

    def __init__(self, cond: Tensor) -> None:
        self.cond = cond

    def _copy_with(self, cond: Tensor) -> Condition:
        return Condition(cond)


class Predictor:
    """Its timesteps are sixty times the noise level."""

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * 60

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) ** 0.5

    def percent_to_sigma(self, percent: float) -> float:
        return 1e9 if percent <= 0 else 0.0 if percent >= 1 else 14.0 * (1 - percent)


class Model(nn.Module):
    """What Forge calls the model of a patcher."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = UNet()
        self.predictor = Predictor()

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_crossattn: Tensor,
        transformer_options: Any,
        control: Any = None,
        **_: Any,
    ) -> Tensor:
        given = self.predictor.calculate_input(t, x), self.predictor.timestep(t)
        more = {"context": c_crossattn, "control": control, "transformer_options": transformer_options}
        return x - t.view(-1, 1, 1, 1) * self.diffusion_model(*given, **more)


class Patcher:
    """Forge's ``UnetPatcher``."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.controlnet_linked_list: Any = None
        self.extra: list[Any] = []

    def clone(self) -> Patcher:
        new = Patcher(self.model)
        new.model_options = copy.deepcopy(self.model_options)
        new.controlnet_linked_list, new.extra = self.controlnet_linked_list, self.extra.copy()
        return new

    def add_patched_controlnet(self, cnet: Any) -> None:
        cnet.set_previous_controlnet(self.controlnet_linked_list)
        self.controlnet_linked_list = cnet

    def add_extra_model_patcher_during_sampling(self, patcher: Any) -> None:
        self.extra.append(patcher)

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.model_options.setdefault("sampler_post_cfg_function", []).append(function)

    def set_model_unet_function_wrapper(self, function: Any) -> None:
        self.model_options["model_function_wrapper"] = function


def batch(
    model: Model, cond: list[Any], uncond: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]
) -> Any:
    """Forge's ``calc_cond_uncond_batch``: all in one call, the negative prompt first."""
    parts = [*[(part, 1) for part in uncond or []], *[(part, 0) for part in cond]]
    told = {**options.get("transformer_options", {}), "cond_or_uncond": [kind for _, kind in parts]}
    tokens = torch.cat([part["model_conds"]["c_crossattn"].cond for part, _ in parts])
    rows, levels = torch.cat([x] * len(parts)), torch.cat([sigma] * len(parts))
    given: dict[str, Any] = {"c_crossattn": tokens, "transformer_options": told}
    control = parts[0][0].get("control")
    if control is not None:
        link = control
        while link is not None:
            link.transformer_options, link = told, link.previous_controlnet
        given["control"] = control.get_control(rows, levels, dict(given), len(parts))
    if "model_function_wrapper" in options:
        call = {"input": rows, "timestep": levels, "c": given, "cond_or_uncond": told["cond_or_uncond"]}
        done = options["model_function_wrapper"](model.apply_model, call)
    else:
        done = model.apply_model(rows, levels, **given)
    groups = done.chunk(len(parts))

    def mean(kind: int) -> Any:
        found = [group for group, (_, own) in zip(groups, parts, strict=True) if own == kind]
        return sum(found) / len(found) if found else torch.zeros_like(x)

    return mean(0), mean(1)


class Denoiser:
    """Forge's CFG denoiser, of which the callbacks are told."""

    def __init__(self, p: Any, steps: int) -> None:
        self.p, self.total_steps, self.step = p, steps, 0


def sample(
    front: Any,
    p: Any,
    *,
    prompts: int = 1,
    images: int = 1,
    mode: AbstractContextManager[Any] | None = None,
) -> Tensor:
    """Euler's method with classifier-free guidance of 2, as Forge samples.

    Args:
        front: Whose ``denoising`` is called back; None: nobody's.
        p: What is made; ``p.sd_model`` samples.
        prompts: Parts of the prompt, joined by AND.
        images: Pictures at once.
        mode: In which it is; None: inference mode, as in Forge.
    """
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randn(images * (prompts + 1), 5, 6, generator=draw)
    noise = torch.randn(images, 4, 8, 8, generator=draw) * SIGMAS[0]
    with torch.inference_mode() if mode is None else mode:
        x, denoiser = noise.clone(), SimpleNamespace(p=p, total_steps=len(SIGMAS) - 1, step=0)
        patcher = p.sd_model.forge_objects.unet
        if patcher.controlnet_linked_list is not None:
            predictor = patcher.model.predictor
            patcher.controlnet_linked_list.pre_run(patcher.model, predictor.percent_to_sigma)
        for denoiser.step, (level, after) in enumerate(pairwise(SIGMAS)):
            sigma = torch.full((images,), level)
            if front is not None:
                front.denoising(SimpleNamespace(denoiser=denoiser, sigma=sigma))
            patcher = p.sd_model.forge_objects.unet  # asked again at every step
            x = x + (x - _denoised(patcher, x, sigma, tokens.split(images))) / level * (after - level)
        if patcher.controlnet_linked_list is not None:
            patcher.controlnet_linked_list.cleanup()
    return x.clone()


def _denoised(patcher: Patcher, x: Tensor, sigma: Tensor, tokens: Any) -> Tensor:
    parts: list[dict[str, Any]] = [{"model_conds": {"c_crossattn": Condition(t.clone())}} for t in tokens]
    for part in parts:
        if patcher.controlnet_linked_list is not None:
            part["control"] = patcher.controlnet_linked_list
    options = patcher.model_options
    cond, uncond = parts[1:], parts[:1]
    clean, plain = batch(patcher.model, cond, uncond, x, sigma, options)
    denoised = plain + (clean - plain) * 2.0
    for function in options.get("sampler_post_cfg_function", []):
        given = {"denoised": denoised, "cond": cond, "uncond": uncond, "model": patcher.model}
        given |= {"cond_denoised": clean, "sigma": sigma, "model_options": options, "input": x}
        denoised = function(given)
    return denoised


class Coder(nn.Module):
    """A decoder of eight pixels from each of the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(4, 3, 8, stride=8)

    def process_out(self, latents: Tensor) -> Tensor:
        return latents / 0.5

    def decode(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.layer(latents))


def loaded(*, inference: bool = True) -> Any:
    """What Forge calls ``sd_model``.

    Args:
        inference: Whether its weights were made in inference mode, as Forge's are.
    """
    torch.manual_seed(0)
    with torch.inference_mode(inference):
        vae = SimpleNamespace(first_stage_model=Coder(), vae_dtype=torch.float32, patcher="the decoder's")
        return SimpleNamespace(forge_objects=SimpleNamespace(unet=Patcher(Model()), vae=vae))


class Preprocessor:
    """What Forge's detectors derive from."""

    def __init__(self) -> None:
        self.name = "PreprocessorBase"
        self.tags: list[str] = []
        self.model_filename_filters: list[str] = []
        self.slider_resolution = Parameter(minimum=128, maximum=2048, value=512, step=8, visible=True)
        self.slider_1, self.slider_2, self.slider_3 = Parameter(), Parameter(), Parameter()
        self.show_control_mode = True
        self.sorting_priority = 0

    def __call__(self, input_image: Any, resolution: int, *_: Any, **__: Any) -> Any:
        return input_image


class Parameter:
    """A slider of theirs."""

    def __init__(self, **given: Any) -> None:
        self.gradio_update_kwargs = {"visible": False, **given}


class ControlModelPatcher:
    """What Forge's control models derive from."""

    def __init__(self, model_patcher: Any = None) -> None:
        self.strength, self.start_percent, self.end_percent = 1.0, 0.0, 1.0
        self.positive_advanced_weighting = self.negative_advanced_weighting = None
        self.advanced_frame_weighting = self.advanced_sigma_weighting = self.advanced_mask_weighting = None


def install(monkeypatch: pytest.MonkeyPatch, models: Any) -> Any:
    """Put the stand-ins where Forge would be.

    Args:
        monkeypatch: Of the test.
        models: Folder of its models.

    Returns:
        Its ``modules_forge.shared``, where extensions register.
    """
    known: dict[str, Any] = {"supported_preprocessors": {}, "supported_control_models": [ControlModelPatcher]}
    known["add_supported_preprocessor"] = lambda p: known["supported_preprocessors"].update({p.name: p})
    known["add_supported_control_model"] = known["supported_control_models"].append
    places: dict[str, dict[str, Any]] = {
        "backend": {},
        "backend.attention": {"attention_function": attention},
        "backend.patcher.controlnet": {
            "ControlBase": ControlBase,
            "compute_controlnet_weighting": weighted,
        },
        "backend.sampling.sampling_function": {"calc_cond_uncond_batch": batch},
        "modules_forge.shared": known,
        "modules_forge.supported_preprocessor": {
            "Preprocessor": Preprocessor,
            "PreprocessorParameter": Parameter,
        },
        "modules_forge.supported_controlnet": {"ControlModelPatcher": ControlModelPatcher},
        "modules.shared": {"cmd_opts": SimpleNamespace()},
        "modules.paths": {"models_path": str(models)},
        "modules.devices": {"device": torch.device("cpu")},
    }
    for name, entries in places.items():
        module = ModuleType(name)
        vars(module).update(entries)
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith("controlkit.hosts.forge")]:
        monkeypatch.delitem(sys.modules, name)
    return sys.modules["modules_forge.shared"]
