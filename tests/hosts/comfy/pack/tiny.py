"""Nodes that run the tiny checkpoint of the other hosts' tests, and write down what it predicts."""

from importlib import import_module
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file

SHAPE = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 32,
    "num_heads": 4,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "dtype": torch.float32,
}


class TinyModel:
    """The U-Net of a whole checkpoint of Stable Diffusion 1's kind, 3 M parameters."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {})}}

    def make(self, file):
        base = import_module("comfy.supported_models_base").BASE
        formats = import_module("comfy.latent_formats")

        class Tiny(base):
            unet_config: ClassVar = {}
            unet_extra_config: ClassVar = {}
            latent_format = formats.SD15

        settings = Tiny(SHAPE)
        settings.set_inference_dtype(torch.float32, None)
        model = settings.get_model({})
        prefix = "model.diffusion_model."
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in load_file(file).items()
            if name.startswith(prefix)
        }
        model.diffusion_model.load_state_dict(state)
        cpu = torch.device("cpu")
        patcher = import_module("comfy.model_patcher").ModelPatcher
        return (patcher(model.eval(), load_device=cpu, offload_device=cpu),)


class FileTokens:
    """A tensor of a file as prompt tokens."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {}), "name": ("STRING", {})}}

    def make(self, file, name):
        return ([[load_file(file)[name], {"pooled_output": None}]],)


class Noise:
    """Noise of a seed at the first of some noise levels, as a LATENT to sample from without further noise."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "sigmas": ("SIGMAS",), "seed": ("INT", {"default": 0})}}

    def make(self, model, sigmas, seed):
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        return ({"samples": model.get_model_object("latent_format").process_out(noise * sigmas[0])},)


class Record:
    """A MODEL that writes what its U-Net predicts at each call into a file, the conditional rows first."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "file": ("STRING", {})}}

    def make(self, model, file):
        steps = []

        def record(unet, *args, **given):
            predicted = unet(*args, **given)
            everything = (*args, *given.values())
            options = next(one for one in everything if isinstance(one, dict) and "cond_or_uncond" in one)
            order = options["cond_or_uncond"]
            parts = zip(order, predicted.chunk(len(order)), strict=True)
            ordered = [part for _, part in sorted(parts, key=lambda pair: pair[0])]
            steps.append(torch.cat(ordered).contiguous())
            save_file({f"{i:03d}": step for i, step in enumerate(steps)}, file)
            return predicted

        recorded = model.clone()
        kinds = import_module("comfy.patcher_extension").WrappersMP
        recorded.add_wrapper_with_key(kinds.DIFFUSION_MODEL, "controlkit_tests", record)
        return (recorded,)


NODES = {
    "TestTinyModel": TinyModel,
    "TestFileTokens": FileTokens,
    "TestNoise": Noise,
    "TestRecord": Record,
}
