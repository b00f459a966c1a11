"""ComfyUI's IMAGE and MASK and what controls read.

IMAGE is (B, H, W, 3) float32 in [0, 1], MASK (B, H, W) or (H, W); both come from inference mode, and controls
keep what they are given, so that all of it is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_maps(image: Tensor) -> Tensor:
    """IMAGE as (B, 3, H, W) in [0, 1]."""
    with torch.inference_mode(False):
        return image[..., :3].clone().float().clamp(0, 1).movedim(-1, 1).contiguous().cpu()


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
