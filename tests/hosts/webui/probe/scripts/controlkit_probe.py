"""An extension for the tests: writes what the web UI gives its sampler and gets back, and can make it fail.

Arguments: a folder to write to (empty: nothing), and the number of the U-Net's call that fails (0: none).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

scripts: Any = importlib.import_module("modules.scripts")
callbacks: Any = importlib.import_module("modules.script_callbacks")
shared: Any = importlib.import_module("modules.shared")
kept: dict[str, list[torch.Tensor]] = {}
calls: list[Any] = []


def keep(name: str, value: Any) -> None:
    kept.setdefault(name, []).append(value.detach().float().cpu().clone().contiguous())


def unet() -> Any:
    return shared.sd_model.model.diffusion_model


class Probe(scripts.Script):
    def title(self) -> str:
        return "ControlKit probe"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        gr = importlib.import_module("gradio")
        return [gr.Textbox(value="", visible=False), gr.Number(value=0, visible=False)]

    def process(self, p: Any, folder: str, fails: float) -> None:
        kept.clear()
        while calls:
            calls.pop().remove()
        if fails:
            left = [int(fails)]

            def raising(*_: Any) -> None:
                left[0] -= 1
                if not left[0]:
                    raise RuntimeError("the probe made this U-Net fail")

            calls.append(unet().middle_block.register_forward_hook(raising))

    def process_before_every_sampling(self, p: Any, folder: str, fails: float, **given: Any) -> None:
        keep("x", given["noise"] if given.get("noise") is not None else given["x"])

    def post_sample(self, p: Any, given: Any, folder: str, fails: float) -> None:
        samples = given.samples  # after hires fix: the decoded pictures, in a list
        keep("samples", samples if isinstance(samples, torch.Tensor) else torch.stack(list(samples)))
        if folder:
            flat = {f"{name}.{i}": value for name, values in kept.items() for i, value in enumerate(values)}
            save_file(flat, Path(folder) / "probe.safetensors")


def denoising(params: Any) -> None:
    keep("sigma", params.sigma)
    keep("cond", params.text_cond)
    keep("uncond", params.text_uncond)


def started(_demo: Any, app: Any) -> None:
    def hooks() -> dict[str, int]:
        names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        found = {
            f"{name}.{kind}": len(getattr(module, kind))
            for name, module in unet().named_modules()
            for kind in names
            if getattr(module, kind)
        }
        return {**found, "forward": sum("forward" in vars(module) for module in unet().modules())}

    app.add_api_route("/controlkit-probe/hooks", hooks, methods=["GET"])


callbacks.on_cfg_denoiser(denoising)
callbacks.on_app_started(started)
