"""The nodes that guide: φ of a colour, of edges, of a region, of a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from controlkit import guidance
from controlkit.errors import ParameterError
from controlkit.guidance import Guidance
from controlkit.hosts.comfy.guidance import Guide
from controlkit.hosts.comfy.pictures import as_maps, as_region
from controlkit.hosts.comfy.widgets import CURVE, MODEL, WINDOW, module_of, number, schedule, text

CATEGORY = "controlkit/guidance"
FUNCTIONS = ("color", "edges", "region")


_COMMON = {
    **WINDOW,
    "max_norm": number(0.0, 0.0, 1e6, "longest gradient of a picture; 0: any", 0.1),
}


class GuidePicture:
    """Guidance by a function of the predicted picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Steer a MODEL so that the picture has a colour, edges, or the look of another in a region."
    FUNCTION = "guide"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "vae": ("VAE", {"tooltip": "makes the predicted picture that is judged"}),
                "function": (list(FUNCTIONS), {"tooltip": "what of the picture is judged"}),
                "strength": number(1.0, -1e4, 1e4, "1 is Bayes' rule", 0.1),
                **_COMMON,
                "normalize": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "so that strength does not depend on φ"},
                ),
                "through_unet": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "exact gradient, for one more pass through the U-Net and back",
                    },
                ),
            },
            "optional": {
                "color": text("a CSS colour or #rrggbb, for color", "red"),
                "target": ("IMAGE", {"tooltip": "an edge map for edges, a picture for region or color"}),
                "mask": ("MASK", {"tooltip": "the region that counts, for region and color"}),
                "curve": CURVE,
            },
        }

    def guide(
        self,
        model: Any,
        vae: Any,
        function: str,
        strength: float,
        start: float,
        end: float,
        max_norm: float,
        normalize: bool,
        through_unet: bool,
        color: str = "red",
        target: Tensor | None = None,
        mask: Tensor | None = None,
        curve: str = "",
    ) -> tuple[Any]:
        with torch.inference_mode(False):
            picture, region = None if target is None else as_maps(target), as_region(mask)
            phi: Any
            wanted: Any = picture
            if function == "color":
                phi = guidance.color(mask=region)
                wanted = color if picture is None else picture
            elif function == "edges":
                phi = guidance.edges()
            else:
                phi = guidance.region(torch.ones(1, 1, 8, 8) if region is None else region)
            if wanted is None:
                raise ParameterError("target", found="no picture", expected=f"one for {function}")
            control = Guidance(
                phi,
                wanted,
                **schedule(strength, start, end, curve),
                max_norm=max_norm or None,
                normalize=normalize,
                through_unet=through_unet,
                name=f"guidance {function}",
            )
            return (Guide(control, vae).install(model),)


class GuideClass:
    """Guidance by a classifier of noisy pictures."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Steer a MODEL towards a class, by a classifier that was trained on noisy pictures."
    FUNCTION = "guide"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "classifier": ("CONTROL_NET", {"tooltip": "as ControlKit's loaders give it"}),
                "wanted": ("INT", {"default": 0, "min": 0, "max": 100000, "tooltip": "the class, from 0"}),
                "strength": number(1.0, -1e4, 1e4, "1 is Bayes' rule; published: 0.5 to 10", 0.1),
                **_COMMON,
            },
            "optional": {"mask": ("MASK", {"tooltip": "where it acts"}), "curve": CURVE},
        }

    def guide(
        self,
        model: Any,
        classifier: Any,
        wanted: int,
        strength: float,
        start: float,
        end: float,
        max_norm: float,
        mask: Tensor | None = None,
        curve: str = "",
    ) -> tuple[Any]:
        from controlkit.adapters.noisy_classifier import NoisyClassifier

        module = module_of(classifier, NoisyClassifier, "classifier", "a noisy classifier")
        with torch.inference_mode(False):
            control = module.on(
                wanted,
                **schedule(strength, start, end, curve),
                max_norm=max_norm or None,
                mask=as_region(mask),
            )
            return (Guide(control).install(model),)
