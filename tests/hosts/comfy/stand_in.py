"""Stand-ins for the parts of ComfyUI that our code touches, with the contract of 0.3.64 and nothing more."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from controlkit.adapters.blocks.transformer import torch_attention

SIGMAS = torch.tensor([14.0, 7.0, 3.0, 1.0, 0.0])
"""Noise levels of a run of four steps."""


class ControlBase:
    """What ComfyUI's controls derive from."""

    def __init__(self) -> None:
        self.cond_hint_original: Any = None
        self.strength = 1.0
        self.timestep_percent_range = (0.0, 1.0)
        self.timestep_range: Any = None
        self.previous_controlnet: Any = None

    def set_cond_hint(
        self, cond_hint: Any, strength: float = 1.0, timestep_percent_range: Any = (0.0, 1.0), **_: Any
    ) -> Any:
        self.cond_hint_original, self.strength = cond_hint, strength
        self.timestep_percent_range = timestep_percent_range
        return self

    def set_previous_controlnet(self, controlnet: Any) -> Any:
        self.previous_controlnet = controlnet
        return self

    def copy_to(self, other: Any) -> None:
        other.cond_hint_original, other.strength = self.cond_hint_original, self.strength
        other.timestep_percent_range = self.timestep_percent_range

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        self.timestep_range = tuple(map(percent_to_timestep_function, self.timestep_percent_range))
        if self.previous_controlnet is not None:
            self.previous_controlnet.pre_run(model, percent_to_timestep_function)

    def get_models(self) -> list[Any]:
        return [] if self.previous_controlnet is None else self.previous_controlnet.get_models()

    def inference_memory_requirements(self, dtype: Any) -> int:
        return 0

    def cleanup(self) -> None:
        if self.previous_controlnet is not None:
            self.previous_controlnet.cleanup()


class Constant(ControlBase):
    """A control of someone else's, that adds a number everywhere; short lists, as some give."""

    def __init__(self, value: float, skips: list[tuple[int, int]]) -> None:
        super().__init__()
        self.value, self.skips = value, skips

    def get_control(self, x: Tensor, *_: Any) -> dict[str, list[Tensor | None]]:
        rows, _channels, height, width = x.shape

        def one(channels: int, stride: int) -> Tensor:
            return torch.full((rows, channels, height // stride, width // stride), self.value)

        return {"input": [], "middle": [None], "output": [one(*skip) for skip in self.skips]}


class ModelPatcher:
    """What moves weights."""

    def __init__(self, model: nn.Module, load_device: Any, offload_device: Any) -> None:
        self.model = model

    def model_size(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins where ComfyUI would be."""
    cpu = torch.device("cpu")
    modules: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.controlnet": {"ControlBase": ControlBase},
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy.model_management": {
            "get_torch_device": lambda: cpu,
            "unet_offload_device": lambda: cpu,
        },
        "comfy.ldm.modules.attention": {"optimized_attention": torch_attention},
        "folder_paths": {
            "get_filename_list": lambda kind: [f"a.{kind}"],
            "folder_names_and_paths": {"controlnet": (), "style_models": ()},
        },
    }
    for name, entries in modules.items():
        module = ModuleType(name)
        vars(module).update(entries)
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith("controlkit.hosts.comfy")]:
        monkeypatch.delitem(sys.modules, name)


class ResBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


class Downsample(ResBlock):
    pass


class Attention(nn.Module):
    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(tokens, channels, bias=False)


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.attn2 = Attention(channels, tokens)


def unet(
    widths: tuple[int, ...], attends: tuple[bool, ...], *, depth: int = 1, tokens: int = 128
) -> nn.Module:
    """Blocks of the shape of ComfyUI's U-Net, that compute nothing."""
    inputs: list[nn.Module] = [nn.Sequential(nn.Conv2d(4, widths[0], 3))]
    outputs: list[nn.Module] = []
    for level, (width, attending) in enumerate(zip(widths, attends, strict=True)):
        parts = [SpatialTransformer(width, tokens)] if attending else []
        inputs += [nn.Sequential(ResBlock(width), *parts) for _ in range(depth)]
        outputs[:0] = [nn.Sequential(ResBlock(width), *parts) for _ in range(depth + 1)]
        if level < len(widths) - 1:
            inputs.append(nn.Sequential(Downsample(width)))
    made = nn.Module()
    made.input_blocks, made.output_blocks = nn.ModuleList(inputs), nn.ModuleList(outputs)
    made.middle_block = nn.Sequential(ResBlock(widths[-1]), SpatialTransformer(widths[-1], tokens))
    return made


def model(net: nn.Module | None = None, pooled: int = 0) -> Any:
    """A loaded model around it; its timesteps are sixty times the noise level."""
    sampling = SimpleNamespace(
        timestep=lambda sigma: sigma * 60,
        calculate_input=lambda sigma, x: x / (1 + sigma.view(-1, 1, 1, 1) ** 2) ** 0.5,
    )
    return SimpleNamespace(
        diffusion_model=unet((96, 144), (True, True)) if net is None else net,
        latent_format=SimpleNamespace(latent_channels=4),
        model_sampling=sampling,
        adm_channels=pooled,
    )


def percent_to_sigma(percent: float) -> float:
    """ComfyUI's own start and end, as noise levels."""
    return 1e9 if percent <= 0 else 0.0 if percent >= 1 else 14.0 * (1 - percent)


def options(*places: int, sigmas: Tensor | None = SIGMAS, **more: Any) -> dict[str, Any]:
    """``transformer_options`` of a call."""
    return {"cond_or_uncond": list(places), "sample_sigmas": sigmas, "uuids": list(places), **more}
