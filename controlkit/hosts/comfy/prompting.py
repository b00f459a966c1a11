"""The nodes for pictures as prompts: IP-Adapter, style adapters, and CoAdapter, on a MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from controlkit.contracts import Control
from controlkit.errors import ParameterError
from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.patch import Patch
from controlkit.hosts.comfy.pictures import as_map_of, as_region
from controlkit.hosts.comfy.widgets import (
    BLOCK_SCALES,
    CATEGORY,
    CURVE,
    MODEL,
    STRENGTH,
    WINDOW,
    detector_inputs,
    module_of,
    our_control,
    read_detector,
    schedule,
)
from controlkit.hosts.written import read_numbers
from controlkit.module import MapModule

CONTENT = ("CLIP_VISION_OUTPUT", {"tooltip": "from CLIPVisionEncode, with the encoder it was trained with"})
TOGETHER, EACH = "all for every picture", "one for each picture"
MEMBERS = "CONTROLKIT_MEMBERS"


class ApplyIPAdapter:
    """A picture as a prompt."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Let a MODEL attend to pictures beside the prompt: IP-Adapter, plus, and the face models."
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        blank = "for plus and face models: makes the unconditional half's tokens, which are zeros without"
        return {
            "required": {
                "model": MODEL,
                "ip_adapter": ("CONTROL_NET", {"tooltip": "as ControlKit's loader gives it"}),
                "content": CONTENT,
                "strength": STRENGTH,
                **WINDOW,
                "mode": (["balanced", "control"], {"tooltip": "control: on the conditional half alone"}),
                "batch": ([TOGETHER, EACH], {"tooltip": "what several pictures in the content are for"}),
            },
            "optional": {
                "clip_vision": ("CLIP_VISION", {"tooltip": blank}),
                "curve": CURVE,
                "block_scales": BLOCK_SCALES,
                "mask": ("MASK", {"tooltip": "where it acts"}),
            },
        }

    def apply(
        self,
        model: Any,
        ip_adapter: Any,
        content: Any,
        strength: float,
        start: float,
        end: float,
        mode: Any,
        batch: str,
        clip_vision: Any = None,
        curve: str = "",
        block_scales: str = "",
        mask: Tensor | None = None,
    ) -> tuple[Any]:
        from controlkit.adapters.ip_adapter import IPAdapter

        module = module_of(ip_adapter, IPAdapter, "ip_adapter", "an IP-Adapter")
        pooled = module.config.reads == "pooled"
        with torch.inference_mode(False):
            said = _embedding(content, "image_embeds" if pooled else "penultimate_hidden_states")
            rows = [said[i : i + 1] for i in range(len(said))]
            control = module.on(
                [rows] if batch == TOGETHER else [[row] for row in rows],
                unconditional=None if pooled or clip_vision is None else _blank(clip_vision),
                **schedule(strength, start, end, curve),
                mode=mode,
                block_scales=read_numbers("block_scales", block_scales),
                mask=as_region(mask),
            )
            return (Patch(control, [ip_adapter.patcher]).install(model),)


class ApplyStyle:
    """The style of a picture, as tokens after the prompt's."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Add T2I-Adapter's style tokens after the prompt's, in the steps of the window; the negative half"
        " gets as many of its own last ones once more."
    )
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "style_adapter": ("CONTROL_NET", {"tooltip": "as ControlKit's loader gives it"}),
                "content": CONTENT,
                "strength": STRENGTH,
                **WINDOW,
            },
            "optional": {"curve": CURVE},
        }

    def apply(
        self,
        model: Any,
        style_adapter: Any,
        content: Any,
        strength: float,
        start: float,
        end: float,
        curve: str = "",
    ) -> tuple[Any]:
        from controlkit.adapters.style_adapter import StyleAdapter

        module = module_of(style_adapter, StyleAdapter, "style_adapter", "a style adapter")
        with torch.inference_mode(False):
            tokens = _embedding(content, "last_hidden_state")
            control = module.on(tokens, **schedule(strength, start, end, curve))
            return (Patch(control, [style_adapter.patcher]).install(model),)


@dataclass(frozen=True, eq=False)
class Members:
    """Bound adapters by condition, in the order in which they were added, and holds of their networks."""

    controls: Mapping[str, Control] = field(default_factory=dict[str, Control])
    patchers: tuple[Any, ...] = ()


class CoAdapterMember:
    """One adapter of a CoAdapter."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Bind an adapter to its map, or the style adapter to its content, for Apply CoAdapter."
    FUNCTION = "add"
    RETURN_TYPES = (MEMBERS,)
    RETURN_NAMES = ("members",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from controlkit.adapters.coadapter.model import TASKS

        return {
            "required": {
                "adapter": ("CONTROL_NET", {"tooltip": "a T2I-Adapter, or a style adapter for style"}),
                "condition": (list(TASKS), {"tooltip": "what it reads, as the fuser was trained"}),
                "strength": STRENGTH,
                **WINDOW,
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "the map, or a photo for the detector"}),
                "content": ("CLIP_VISION_OUTPUT", {"tooltip": "for style"}),
                "members": (MEMBERS, {"tooltip": "those before it"}),
                **detector_inputs(),
                "curve": CURVE,
            },
        }

    def add(
        self,
        adapter: Any,
        condition: str,
        strength: float,
        start: float,
        end: float,
        image: Tensor | None = None,
        content: Any = None,
        members: Members | None = None,
        detector: str = "",
        detector_options: str = "",
        curve: str = "",
    ) -> tuple[Members]:
        before = members or Members()
        if condition in before.controls:
            raise ParameterError("condition", found=f"{condition} twice", expected="each once")
        held, options = our_control(adapter), schedule(strength, start, end, curve)
        with torch.inference_mode(False):
            if isinstance(held.module, MapModule):
                if image is None:
                    raise ParameterError("image", found="none", expected=f"the map for {condition}")
                detect = read_detector(detector, detector_options)
                control = held.module.on(as_map_of(image, detect), **detect, **options)
            elif content is None:
                raise ParameterError("content", found="none", expected=f"a picture's, for {condition}")
            else:
                control = held.module.on(_embedding(content, "last_hidden_state"), **options)
        return (Members({**before.controls, condition: control}, (*before.patchers, held.patcher)),)


class ApplyCoAdapter:
    """Several adapters that a fuser weighs against each other."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Add what a CoAdapter fuser makes of several T2I-Adapters and a style adapter."
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "fuser": ("CONTROL_NET", {"tooltip": "as ControlKit's loader gives it"}),
                "members": (MEMBERS, {"tooltip": "the last of a chain of CoAdapter members"}),
                "strength": STRENGTH,
                **WINDOW,
            },
            "optional": {"curve": CURVE},
        }

    def apply(
        self,
        model: Any,
        fuser: Any,
        members: Members,
        strength: float,
        start: float,
        end: float,
        curve: str = "",
    ) -> tuple[Any]:
        from controlkit.adapters.coadapter import CoAdapterFuser

        module = module_of(fuser, CoAdapterFuser, "fuser", "a CoAdapter fuser")
        with torch.inference_mode(False):
            control = module.on(members.controls, **schedule(strength, start, end, curve))
            return (Patch(control, [fuser.patcher, *members.patchers]).install(model),)


def _embedding(content: Any, part: str) -> Tensor:
    """A part of ComfyUI's CLIP_VISION_OUTPUT, one row per picture."""
    return content[part].detach().clone().float().cpu()


def _blank(clip_vision: Any) -> Tensor:
    """What an image encoder says, in its last layer but one, of an image of zeros after preprocessing."""
    host("comfy.model_management").load_model_gpu(clip_vision.patcher)
    size = int(clip_vision.image_size)
    with torch.no_grad():
        pixels = torch.zeros(1, 3, size, size, device=clip_vision.load_device)
        answer = clip_vision.model(pixel_values=pixels, intermediate_output=-2)
    return answer[1].detach().clone().float().cpu()
