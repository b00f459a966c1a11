"""Nodes for the tests alone: prompt tokens and pictures from a seed, without a text encoder."""

import torch

from . import tiny


class RandomTokens:
    """Prompt tokens (1, count, 768)."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0}), "count": ("INT", {"default": 7})}}

    def make(self, seed, count):
        made = torch.randn(1, count, 768, generator=torch.Generator().manual_seed(seed))
        return ([[made, {"pooled_output": None}]],)


class RandomPicture:
    """A picture (1, size, size, 3)."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0}), "size": ("INT", {"default": 64})}}

    def make(self, seed, size):
        return (torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(seed)),)


class Levels:
    """Noise levels of given timesteps of a MODEL, and 0."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "timesteps": ("STRING", {"default": "999"})}}

    def make(self, model, timesteps):
        table = model.get_model_object("model_sampling").sigmas
        levels = [float(table[int(timestep)]) for timestep in timesteps.split(",")]
        return (torch.tensor([*levels, 0.0]),)


class Content:
    """What an image encoder says of pictures, as CLIPVisionEncode gives it: a vector, and tokens."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)

    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"seed": ("INT", {"default": 0}), "width": ("INT", {"default": 768})}
        return {"required": inputs, "optional": {"pictures": ("INT", {"default": 1})}}

    def make(self, seed, width, pictures=1):
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(pictures, width, generator=generator)
        tokens = torch.randn(pictures, 5, width, generator=generator)
        named = {"last_hidden_state": tokens, "penultimate_hidden_states": tokens.flip(1)}
        return ({"image_embeds": vector, **named},)


class Vision:
    """An image encoder with weights from a seed, for CLIPVisionEncode."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("CLIP_VISION",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"config": ("STRING", {}), "weights": ("STRING", {})}}

    def make(self, config, weights):
        from importlib import import_module

        model = import_module("comfy.clip_vision").ClipVisionModel(config)
        missing, unused = model.load_sd(import_module("comfy.utils").load_torch_file(weights))
        assert not missing
        assert not [name for name in unused if "position_ids" not in name]
        return (model,)


NODE_CLASS_MAPPINGS = {
    **tiny.NODES,
    "TestTokens": RandomTokens,
    "TestPicture": RandomPicture,
    "TestLevels": Levels,
    "TestContent": Content,
    "TestVision": Vision,
}
