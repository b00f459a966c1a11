"""Nodes for the tests alone: prompt tokens and pictures from a seed, without a text encoder."""

import torch


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
    """A content embedding (1, width), as CLIPVisionEncode gives it."""

    CATEGORY = "controlkit tests"
    FUNCTION = "make"
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0}), "width": ("INT", {"default": 768})}}

    def make(self, seed, width):
        made = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
        return ({"image_embeds": made},)


NODE_CLASS_MAPPINGS = {
    "TestTokens": RandomTokens,
    "TestPicture": RandomPicture,
    "TestLevels": Levels,
    "TestContent": Content,
}
