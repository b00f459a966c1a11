"""An extension for the tests: writes what the web UI's U-Net predicted at each call of a sampling.

``predictions.safetensors`` in the web UI's data folder holds (rows, channels, h, w) by the call's number, the
conditional rows first. It is what the U-Net returned, not what can be had back from a clean picture: there,
at a low noise level, most of its digits are lost.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

scripts: Any = importlib.import_module("modules.scripts")
shared: Any = importlib.import_module("modules.shared")
paths: Any = importlib.import_module("modules.paths_internal")
kept: list[torch.Tensor] = []
handles: list[Any] = []


def unet() -> Any:
    forge = getattr(shared.sd_model, "forge_objects", None)
    return shared.sd_model.model.diffusion_model if forge is None else forge.unet.model.diffusion_model


def keep(_unet: Any, _args: Any, given: dict[str, Any], predicted: torch.Tensor) -> None:
    order = given.get("transformer_options", {}).get(
        "cond_or_uncond", [0, 1]
    )  # Forge tells; the web UI's is this
    parts = predicted.detach().float().cpu().chunk(len(order))
    ordered = sorted(zip(order, parts, strict=True), key=lambda pair: pair[0])
    kept.append(torch.cat([part for _, part in ordered]).contiguous())


def stop() -> None:
    while handles:
        handles.pop().remove()


class Recorder(scripts.Script):
    def title(self) -> str:
        return "ControlKit recorder"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def process_before_every_sampling(self, p: Any, *args: Any, **given: Any) -> None:
        stop()
        kept.clear()
        handles.append(unet().register_forward_hook(keep, with_kwargs=True))

    def post_sample(self, p: Any, samples: Any, *args: Any) -> None:
        stop()
        flat = {f"{i:03d}": predicted for i, predicted in enumerate(kept)}
        save_file(flat, Path(paths.data_path) / "predictions.safetensors")
