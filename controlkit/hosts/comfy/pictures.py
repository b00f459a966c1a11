"""ComfyUI's IMAGE and MASK and what controls read.

IMAGE is (B, H, W, 3) float32 in [0, 1], MASK (B, H, W) or (H, W); both come from inference mode, and controls
keep what they are given, so that all of it is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from controlkit.errors import ParameterError


def as_maps(image: Tensor) -> Tensor:
    """IMAGE as (B, 3, H, W) in [0, 1]."""
    with torch.inference_mode(False):
        return image[..., :3].clone().float().clamp(0, 1).movedim(-1, 1).contiguous().cpu()


def as_map_of(image: Tensor, detect: Mapping[str, Any], hidden: Tensor | None = None) -> Any:
    """IMAGE as a control takes it: photos where a detector is named under ``detect``, else maps.

    Args:
        image: (B, H, W, 3).
        detect: ``detect`` and ``detect_options`` of the control.
        hidden: MASK: pixels of the map that inpainting networks read as hidden, -1.

    Raises:
        ParameterError: Hidden pixels beside a detector, or of another size than the map.
    """
    if detect["detect"]:
        if hidden is not None:
            raise ParameterError(
                "hidden",
                found=f"a mask beside the detector {detect['detect']}",
                expected="one or the other",
                fix="Give the map that belongs to the mask, and no detector.",
            )
        return as_pil(image)
    maps, region = as_maps(image), as_region(hidden)
    if region is None:
        return maps
    if region.shape[-2:] != maps.shape[-2:] or region.shape[0] not in (1, maps.shape[0]):
        raise ParameterError(
            "hidden",
            found=f"{region.shape[0]} of {tuple(region.shape[-2:])}, the map {tuple(maps.shape[-2:])}",
            expected="the map's size, one for all or one for each",
            fix="Give both from one node, such as the detector inpaint.",
        )
    return torch.where(region > 0.5, -1.0, maps)


def hidden_in(maps: Sequence[Image.Image]) -> Tensor:
    """MASK of the pixels that maps of the detector inpaint hide."""
    nothing = [Image.new("L", picture.size) for picture in maps]
    masks = [picture.info.get("hidden", none) for picture, none in zip(maps, nothing, strict=True)]
    return torch.tensor(np.stack([np.asarray(mask, np.float32) / 255 for mask in masks]))


def as_region(mask: Tensor | None) -> Tensor | None:
    """MASK as (B, 1, H, W) in [0, 1]; None where there is none."""
    if mask is None:
        return None
    with torch.inference_mode(False):
        rows = mask.clone().float().clamp(0, 1).cpu()
        return rows.reshape(-1, 1, *rows.shape[-2:])


def as_pil(image: Tensor) -> list[Image.Image]:
    """IMAGE as one RGB picture each."""
    pixels = (image[..., :3].detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(row)) for row in pixels]


def from_pil(pictures: Image.Image | Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as IMAGE."""
    rows = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    arrays = [np.asarray(row.convert("RGB"), np.float32) / 255 for row in rows]
    return torch.tensor(np.stack(arrays))
