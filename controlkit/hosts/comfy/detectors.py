"""One node per detector, made from the table of detectors: their options are its widgets."""

from __future__ import annotations

import os
from typing import Any

from PIL import Image
from torch import Tensor

from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.pictures import as_pil, as_region, from_pil, hidden_in
from controlkit.preprocessors import DetectorInfo, detectors, preprocess
from controlkit.preprocessors.base import OptionInfo

CATEGORY = "controlkit/detectors"
_LARGE = 1_000_000.0


def detector_nodes() -> dict[str, Any]:
    """Every detector's node by its name; runs none of them and imports nothing that they need."""
    return {node_name(info.name): _node(info) for info in detectors()}


def titles() -> dict[str, str]:
    """What the menu calls them, by their names."""
    return {node_name(info.name): f"Detect {info.name}" for info in detectors()}


def node_name(detector: str) -> str:
    """``ControlKitDetectCanny`` for ``canny``."""
    words = detector.replace("-", "_").replace(" ", "_").split("_")
    return "ControlKitDetect" + "".join(word[:1].upper() + word[1:] for word in words)


def widget(option: OptionInfo) -> tuple[Any, dict[str, Any]]:
    """An option as ComfyUI's input."""
    tooltip = f"{option.meaning} ({option.unit})" if option.unit else option.meaning
    about: dict[str, Any] = {"default": option.default, "tooltip": tooltip}
    if option.default is None:
        return "MASK", {"tooltip": tooltip}
    if isinstance(option.default, bool):
        return "BOOLEAN", about
    if option.choices:
        return list(option.choices), about
    if isinstance(option.default, str):
        return "STRING", about
    whole = isinstance(option.default, int)
    kind = int if whole else float
    about["min"] = kind(-_LARGE if option.low is None else option.low)
    about["max"] = kind(_LARGE if option.high is None else option.high)
    about["step"] = kind(option.step or (1 if whole else 0.01))
    if not whole:
        about["round"] = False
    return ("INT" if whole else "FLOAT"), about


def preview(pictures: list[Image.Image]) -> list[dict[str, str]]:
    """Save pictures where ComfyUI shows them from."""
    paths = host("folder_paths")
    first = pictures[0]
    folder, name, counter, subfolder, _ = paths.get_save_image_path(
        "controlkit", paths.get_temp_directory(), first.width, first.height
    )
    shown: list[dict[str, str]] = []
    for index, picture in enumerate(pictures):
        file = f"{name}_{counter + index:05}_.png"
        picture.save(os.path.join(folder, file), compress_level=1)
        shown.append({"filename": file, "subfolder": subfolder, "type": "temp"})
    return shown


def _node(info: DetectorInfo) -> Any:
    masks = [option.name for option in info.options if option.default is None]
    needs = f" Needs {info.extra}." if info.extra else ""
    hides = info.family == "inpaint"

    class Detect:
        CATEGORY = CATEGORY
        DESCRIPTION = f"{info.meaning[:1].upper()}{info.meaning[1:]}.{needs}"
        FUNCTION = "run"
        RETURN_TYPES = ("IMAGE", "MASK") if hides else ("IMAGE",)
        RETURN_NAMES = ("map", "hidden") if hides else ("map",)
        OUTPUT_NODE = True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            about = "shortest side at which it looks, in pixels; 0: the picture's own"
            resolution = ("INT", {"default": 0, "min": 0, "max": 4096, "step": 8, "tooltip": about})
            options = {option.name: widget(option) for option in info.options}
            image = ("IMAGE", {"tooltip": "photos; each gives a map of its size"})
            return {"required": {"image": image}, "optional": {**options, "resolution": resolution}}

        def run(self, image: Tensor, resolution: int = 0, **options: Any) -> dict[str, Any]:
            regions = {name: as_region(options.pop(name, None)) for name in masks}
            options |= {name: region[0, 0].numpy() for name, region in regions.items() if region is not None}
            maps = preprocess(as_pil(image), info.name, resolution=resolution or None, **options)
            result = (from_pil(maps), hidden_in(maps)) if hides else (from_pil(maps),)
            return {"ui": {"images": preview(maps)}, "result": result}

    Detect.__name__ = Detect.__qualname__ = node_name(info.name)
    return Detect
