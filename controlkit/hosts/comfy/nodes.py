"""The nodes that load and apply controls, and those of the embedded model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controlkit import embedded
from controlkit.errors import ParameterError
from controlkit.hosts.comfy.attachments import attached
from controlkit.hosts.comfy.conditioning import controls_in, with_control, with_tokens
from controlkit.hosts.comfy.control import EngineControl, chain
from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.pictures import as_map_of, as_maps, as_region, from_pil
from controlkit.hosts.comfy.widgets import (
    BLOCK_SCALES,
    CATEGORY,
    CURVE,
    NEGATIVE,
    POSITIVE,
    STRENGTH,
    WINDOW,
    detector_inputs,
    module_of,
    number,
    our_module,
    read_detector,
    schedule,
    text,
)
from controlkit.hosts.written import read_numbers, read_options
from controlkit.module import MapModule
from controlkit.report import Report

MODES = ("balanced", "prompt", "control")
MODE = (list(MODES), {"tooltip": "prompt: weaker far from the middle block; control: positive half alone"})
RESIZES = ("stretch", "crop", "pad")
CONDITIONS = ("canny", "mlsd", "hed", "sketch", "openpose", "midas", "seg")
FOLDERS = ("controlnet", "style_models", "ipadapter")
"""Of ComfyUI, by the names in which it or another extension registers them; a missing one is left out."""


class LoadControl:
    """Any control file of ComfyUI's folders for them."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Load a control file of any kind and format; what it is, is told by its content. Files lie in"
        " models/controlnet, models/style_models, or models/ipadapter where an extension has that folder."
    )
    FUNCTION = "load"
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        about = "what shapes cannot tell, for unpublished networks, such as num_heads: 8"
        file = (list(_files()), {"tooltip": "of ControlNets, adapters and classifiers, old layouts and new"})
        return {"required": {"file": file}, "optional": {"config": text(about)}}

    def load(self, file: str, config: str = "") -> tuple[EngineControl]:
        import controlkit

        folder, name = _files().get(file, (FOLDERS[0], file))
        path = host("folder_paths").get_full_path_or_raise(folder, name)
        with torch.inference_mode(False):
            place = Path(path)
            options: dict[str, Any] = {"config": read_options(config) or None, "local_files_only": True}
            if not options["config"] and (place.parent / "config.json").is_file():
                place, options["weight_name"] = place.parent, place.name  # a folder in diffusers' layout
            return (EngineControl(controlkit.load(place, dtype=_dtype(), **options)),)


class EmbeddedControl:
    """A control of the embedded model."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Load a control module that is part of ControlKit, for its embedded model."
    FUNCTION = "load"
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": (list(embedded.names()), {"tooltip": "what it reads, or guides by"})}}

    def load(self, name: str) -> tuple[EngineControl]:
        with torch.inference_mode(False):
            return (EngineControl(embedded.load(name)),)


class EmbeddedModel:
    """The embedded model."""

    CATEGORY = CATEGORY
    DESCRIPTION = "ControlKit's embedded model: 128x128 pictures of solids on a floor, without a download."
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any, Any, Any]:
        from controlkit.hosts.comfy.embedded import build

        return build()


class EmbeddedScene:
    """A scene of the embedded model's world."""

    CATEGORY = CATEGORY
    DESCRIPTION = "A scene of the embedded model's world: picture, exact maps, mask of its solids, caption."
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("image", "canny", "depth", "seg", "solids", "caption")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        about = "below 1000000: scenes that no embedded model has seen"
        return {"required": {"seed": ("INT", {"default": 0, "min": 0, "max": 2**31, "tooltip": about})}}

    def make(self, seed: int) -> tuple[Any, ...]:
        scene = embedded.scene(seed)
        solids = torch.tensor(scene.instances > 0).float()[None]
        pictures = (scene.image, scene.canny, scene.depth, scene.seg)
        return (*(from_pil(picture) for picture in pictures), solids, scene.caption)


class Apply:
    """A control bound to its map, in the conditioning."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Add a control to both conditionings. Chain as many as you like, also with ComfyUI's own."
    FUNCTION = "apply"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": POSITIVE,
                "negative": NEGATIVE,
                "control_net": ("CONTROL_NET", {"tooltip": "as ControlKit's loaders give it"}),
                "image": ("IMAGE", {"tooltip": "the map, or a photo for the detector"}),
                "strength": STRENGTH,
                **WINDOW,
                "mode": MODE,
            },
            "optional": {
                **detector_inputs(),
                "resize": (list(RESIZES), {"tooltip": "how a map of another shape is fitted"}),
                "curve": CURVE,
                "block_scales": BLOCK_SCALES,
                "union_type": text("for a ControlNet-Union: what the map shows, such as canny"),
                "mask": ("MASK", {"tooltip": "where the control acts"}),
                "hidden": ("MASK", {"tooltip": "for inpainting: the map's hidden pixels, from its detector"}),
            },
        }

    def apply(
        self,
        positive: Any,
        negative: Any,
        control_net: Any,
        image: Tensor,
        strength: float,
        start: float,
        end: float,
        mode: str,
        detector: str = "",
        detector_options: str = "",
        resize: str = "stretch",
        curve: str = "",
        block_scales: str = "",
        union_type: str = "",
        mask: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Any, ...]:
        from controlkit.adapters.controlnet_union import ControlNetUnion

        module = our_module(control_net)
        union = isinstance(module, ControlNetUnion)
        if not union and not isinstance(module, MapModule):
            raise ParameterError(
                "control_net",
                found=f"a {module.kind}",
                expected="a module that reads one map, such as a ControlNet or a T2I-Adapter",
                fix="Use the node made for its kind.",
            )
        with torch.inference_mode(False):
            detect = read_detector(detector, detector_options)
            options: dict[str, Any] = {
                **detect,
                **schedule(strength, start, end, curve),
                "mode": mode,
                "block_scales": read_numbers("block_scales", block_scales),
                "mask": as_region(mask),
                "resize": resize,
            }
            given = as_map_of(image, detect, hidden)
            control = module.on({union_type: given} if union else given, **options)
            return with_control(control_net.bind(control), positive, negative)


class ApplyUni:
    """A Uni-ControlNet's maps in the control, its content in the tokens."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Add a Uni-ControlNet: any of its local maps, and the content of a picture (from CLIPVisionEncode"
        " with CLIP-L) as tokens after the prompt's, which act over the whole run."
    )
    FUNCTION = "apply"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": POSITIVE,
                "negative": NEGATIVE,
                "control_net": (
                    "CONTROL_NET",
                    {"tooltip": "a Uni-ControlNet, as ControlKit's loader gives it"},
                ),
                "local_strength": number(1.0, -10.0, 10.0, "scale of the maps: 0 is off, 1 as trained"),
                "global_strength": number(1.0, -10.0, 10.0, "scale of the content: 0 is off"),
                **WINDOW,
                "mode": MODE,
            },
            "optional": {
                **{name: ("IMAGE", {"tooltip": f"a map as {name} makes it"}) for name in CONDITIONS},
                "content": (
                    "CLIP_VISION_OUTPUT",
                    {"tooltip": "what the picture is to be of, from CLIPVisionEncode"},
                ),
                "mask": ("MASK", {"tooltip": "where the maps act"}),
            },
        }

    def apply(
        self,
        positive: Any,
        negative: Any,
        control_net: Any,
        local_strength: float,
        global_strength: float,
        start: float,
        end: float,
        mode: str,
        content: Any = None,
        mask: Tensor | None = None,
        **maps: Tensor | None,
    ) -> tuple[Any, ...]:
        from controlkit.adapters.uni_controlnet import UniControlNet

        module = module_of(control_net, UniControlNet, "control_net", "a Uni-ControlNet")
        given = {name: as_maps(image) for name, image in maps.items() if image is not None}
        if not given and content is None:
            raise ParameterError("maps", found="neither a map nor a content", expected="at least one")
        with torch.inference_mode(False), torch.no_grad():
            if content is not None and global_strength:
                embedding = content["image_embeds"].detach().clone().float().cpu()
                module.on(content=embedding)  # refuses one that does not fit
                here = next(module.parameters())
                made = module.tokens(torch.cat([embedding[:1], torch.zeros_like(embedding[:1])]).to(here))
                own, absent = (made * global_strength).chunk(2)
                positive = with_tokens(positive, lambda _: own)
                negative = with_tokens(negative, lambda _: absent)
            if not given:
                return positive, negative
            options: dict[str, Any] = {"start": start, "end": end, "mode": mode, "mask": as_region(mask)}
            control = module.on(given, local_scale=local_strength, **options)
            return with_control(control_net.bind(control, reads_all=True), positive, negative)


class ShowReport:
    """What every control did in a sampling."""

    CATEGORY = CATEGORY
    DESCRIPTION = "What each control did in the sampling that made these latents, as text."
    FUNCTION = "show"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"samples": ("LATENT", {"tooltip": "so that it waits for the sampler"})},
            "optional": {
                "positive": ("CONDITIONING", {"tooltip": "what the sampler was given, for its controls"}),
                "model": ("MODEL", {"tooltip": "what the sampler was given, for what is on it"}),
            },
        }

    def show(self, samples: Mapping[str, Any], positive: Any = None, model: Any = None) -> dict[str, Any]:
        controls = [one for last in controls_in(positive or []) for one in chain(last)]
        records = [control.record for control in controls] + [one.record for one in attached(model)]
        report = Report(tuple(record.row() for record in records))
        return {"ui": {"text": [str(report)], "rows": [_rows(report)]}, "result": (str(report),)}


def _files() -> dict[str, tuple[str, str]]:
    """Every control file by the name it is chosen under: its folder, and its name in that.

    Those of ``controlnet`` are chosen by their own names, the others by ``folder/name``.
    """
    paths = host("folder_paths")
    found: dict[str, tuple[str, str]] = {}
    for folder in FOLDERS:
        if folder in paths.folder_names_and_paths:
            for name in paths.get_filename_list(folder):
                found.setdefault(name if folder == FOLDERS[0] else f"{folder}/{name}", (folder, name))
    return found


def _rows(report: Report) -> str:
    """The figures for programs."""
    rows = [
        {"control": r.control, "steps": r.steps, "applied": r.applied, "norm": r.norm} for r in report.rows
    ]
    return json.dumps(rows)


def _dtype() -> torch.dtype | None:
    """What to compute in: float32 on CPUs, where half precision is many times slower; else what is stored."""
    return torch.float32 if host("comfy.model_management").get_torch_device().type == "cpu" else None
