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
from controlkit.hosts.comfy.conditioning import controls_in, with_control, with_tokens
from controlkit.hosts.comfy.control import EngineControl, chain
from controlkit.hosts.comfy.guidance import guides
from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.pictures import as_maps, as_pil, as_region, from_pil
from controlkit.hosts.written import read_numbers, read_options, read_points
from controlkit.module import ControlModule, MapModule
from controlkit.preprocessors import detectors
from controlkit.report import Report

CATEGORY = "controlkit"
MODES = ("balanced", "prompt", "control")
RESIZES = ("stretch", "crop", "pad")
NO_DETECTOR = "none: the image is the map"
CONDITIONS = ("canny", "mlsd", "hed", "sketch", "openpose", "midas", "seg")


def number(
    default: float, low: float, high: float, about: str, step: float = 0.01
) -> tuple[str, dict[str, Any]]:
    """A FLOAT widget."""
    options = {"default": default, "min": low, "max": high, "step": step, "round": False, "tooltip": about}
    return "FLOAT", options


def text(about: str, default: str = "") -> tuple[str, dict[str, Any]]:
    """A STRING widget."""
    return "STRING", {"default": default, "tooltip": about}


WINDOW = {
    "start": number(0.0, 0.0, 1.0, "share of the sampler's steps at which it begins to act"),
    "end": number(1.0, 0.0, 1.0, "share of the steps at which it ends"),
}
CURVE = text("scale over the run as points, such as 0: 1, 0.5: 0.2; takes the place of strength")


class LoadControl:
    """Any control file of ComfyUI's controlnet folder."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Load a control file of any kind and format; what it is, is told by its content."
    FUNCTION = "load"
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        about = "what shapes cannot tell, for unpublished networks, such as num_heads: 8"
        files = host("folder_paths").get_filename_list("controlnet")
        return {"required": {"file": (files,)}, "optional": {"config": text(about)}}

    def load(self, file: str, config: str = "") -> tuple[EngineControl]:
        import controlkit

        path = host("folder_paths").get_full_path_or_raise("controlnet", file)
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
        return {"required": {"name": (list(embedded.names()),)}}

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
        names = [NO_DETECTOR, *(info.name for info in detectors())]
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE", {"tooltip": "the map, or a photo for the detector"}),
                "strength": number(1.0, -10.0, 10.0, "0 is off, 1 as trained"),
                **WINDOW,
                "mode": (list(MODES), {"tooltip": "which of prompt and control matters more"}),
            },
            "optional": {
                "detector": (names, {"tooltip": "makes the map from a photo"}),
                "detector_options": text("such as low_threshold: 60, high_threshold: 140"),
                "resize": (list(RESIZES), {"tooltip": "how a map of another shape is fitted"}),
                "curve": CURVE,
                "block_scales": text("one factor per residual, first to deepest, the middle last"),
                "union_type": text("for a ControlNet-Union: what the map shows, such as canny"),
                "mask": ("MASK", {"tooltip": "where the control acts"}),
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
        detector: str = NO_DETECTOR,
        detector_options: str = "",
        resize: str = "stretch",
        curve: str = "",
        block_scales: str = "",
        union_type: str = "",
        mask: Tensor | None = None,
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
            detect = None if detector == NO_DETECTOR else detector
            options: dict[str, Any] = {
                "detect": detect,
                "detect_options": read_options(detector_options) if detect else None,
                "scale": read_points(curve) or strength,
                "start": start,
                "end": end,
                "mode": mode,
                "block_scales": read_numbers("block_scales", block_scales),
                "mask": as_region(mask),
                "resize": resize,
            }
            given: Any = as_pil(image) if detect else as_maps(image)
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
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "local_strength": number(1.0, -10.0, 10.0, "of the maps"),
                "global_strength": number(1.0, -10.0, 10.0, "of the content"),
                **WINDOW,
                "mode": (list(MODES),),
            },
            "optional": {
                **{name: ("IMAGE",) for name in CONDITIONS},
                "content": ("CLIP_VISION_OUTPUT",),
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

        module = our_module(control_net)
        if not isinstance(module, UniControlNet):
            raise ParameterError("control_net", found=f"a {module.kind}", expected="a Uni-ControlNet")
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
            "optional": {"positive": ("CONDITIONING",), "model": ("MODEL",)},
        }

    def show(self, samples: Mapping[str, Any], positive: Any = None, model: Any = None) -> dict[str, Any]:
        controls = [one for last in controls_in(positive or []) for one in chain(last)]
        records = [control.record for control in controls] + [guide.record for guide in guides(model)]
        report = Report(tuple(record.row() for record in records))
        return {"ui": {"text": [str(report)], "rows": [_rows(report)]}, "result": (str(report),)}


def our_module(control_net: Any) -> ControlModule:
    """The module of a CONTROL_NET of ours.

    Raises:
        ParameterError: It is one of ComfyUI's own or of another extension.
    """
    if not isinstance(control_net, EngineControl):
        raise ParameterError(
            "control_net",
            found=f"a {type(control_net).__name__} that was loaded by another node",
            expected="one that a node of ControlKit loaded",
            fix="Apply it with ComfyUI's own node, in the same chain.",
        )
    return control_net.module


def _rows(report: Report) -> str:
    """The figures for programs."""
    rows = [
        {"control": r.control, "steps": r.steps, "applied": r.applied, "norm": r.norm} for r in report.rows
    ]
    return json.dumps(rows)


def _dtype() -> torch.dtype | None:
    """What to compute in: float32 on CPUs, where half precision is many times slower; else what is stored."""
    return torch.float32 if host("comfy.model_management").get_torch_device().type == "cpu" else None
