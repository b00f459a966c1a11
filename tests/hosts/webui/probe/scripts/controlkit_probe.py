"""An extension for the tests: writes what the web UI gives its sampler and gets back, and can make it fail.

Arguments: a folder to write to (empty: nothing), and the number of the U-Net's call that fails (0: none).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

scripts: Any = importlib.import_module("modules.scripts")
callbacks: Any = importlib.import_module("modules.script_callbacks")
shared: Any = importlib.import_module("modules.shared")
TEXT = "controlkit-tiny-text.json"
kept: dict[str, list[torch.Tensor]] = {}
calls: list[Any] = []


def keep(name: str, value: Any) -> None:
    if isinstance(value, dict):  # SDXL's tokens, and what it knows beside them
        keep(name, value["crossattn"])
        name, value = f"{name}_vector", value["vector"]
    kept.setdefault(name, []).append(value.detach().float().cpu().clone().contiguous())


def unet() -> Any:
    forge = getattr(shared.sd_model, "forge_objects", None)
    return shared.sd_model.model.diffusion_model if forge is None else forge.unet.model.diffusion_model


def prepare() -> None:
    """What tiny checkpoints need: a text encoder that open-clip knows, and ControlNets of their width."""
    if importlib.util.find_spec("open_clip") is not None:
        importlib.import_module("open_clip").add_model_config(Path(__file__).parents[1] / TEXT)
    theirs = sys.modules.get("scripts.controlnet_model_guess")
    if theirs is not None:
        theirs.controlnet_default_config["model_channels"] = 32  # sd-webui-controlnet takes them to be 320


def patches() -> dict[str, int]:
    """What is on Forge's model that was not there when it was loaded."""
    forge = getattr(shared.sd_model, "forge_objects", None)
    if forge is None:
        return {}
    options = dict(forge.unet.model_options)
    options |= {f"transformer {name}": value for name, value in options.pop("transformer_options").items()}
    found = {name: 1 for name, value in options.items() if value}
    controls = len(forge.unet.list_controlnets())
    return {**found, "controls": controls} if controls else found


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
    keep("x_in", params.x[:1])
    if params.image_cond is not None:
        keep("beside", params.image_cond[:1])
    keep("sigma", params.sigma)
    keep("cond", params.text_cond)
    keep("uncond", params.text_uncond)


def guided(params: Any) -> None:
    keep("denoised", params.x)


def started(_demo: Any, app: Any) -> None:
    def hooks() -> dict[str, int]:
        names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        found = {
            f"{name}.{kind}": len(getattr(module, kind))
            for name, module in unet().named_modules()
            for kind in names
            if getattr(module, kind)
        }
        return {
            **found,
            **patches(),
            "forward": sum("forward" in vars(module) for module in unet().modules()),
        }

    app.add_api_route("/controlkit-probe/hooks", hooks, methods=["GET"])
    prepare()


callbacks.on_cfg_denoiser(denoising)
callbacks.on_cfg_after_cfg(guided)
callbacks.on_app_started(started)
