"""Image to image of AUTOMATIC1111 as the picture that a recipe starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from controlkit.errors import ParameterError
from controlkit.images import as_picture
from controlkit.recipes import encode
from controlkit.recipes.starting import PAINTED
from controlkit.ui import units
from controlkit.ui.service import Service

_FILLS = ("fill", "original", "latent noise", "latent nothing")
_RESIZES = ("stretch", "crop", "resize and fill", "latent upscale")
IMG2IMG = units.body(
    **units.PICTURE,
    init_images={"type": "array", "items": units.TEXT},
    denoising_strength=units.NUMBER,
    resize_mode=units.WHOLE,
    mask={"type": ["string", "null"]},
    mask_blur=units.NUMBER,
    inpainting_fill=units.WHOLE,
    inpaint_full_res={"type": ["boolean", "integer"]},
    inpaint_full_res_padding=units.WHOLE,
    inpainting_mask_invert=units.WHOLE,
)
"""The description of a request of image to image."""


def init_of(values: dict[str, Any], service: Service) -> dict[str, Any]:
    """The ``init`` of a recipe that a request of image to image means.

    What is masked begins with the picture itself (``inpainting_fill`` 1), with the colours around it (0), or,
    at the whole strength, with noise alone (2, and 3, which is the same then).

    Raises:
        ParameterError: Something that is not offered and would change the picture.
    """
    images = values.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise ParameterError(
            "init_images",
            found=f"{len(images)} pictures" if isinstance(images, list) else f"{images!r:.60}",
            expected="one picture as base64",
            fix="Ask once for each picture.",
        )
    _only(values, "initial_noise_multiplier", (1, None))
    picture = as_picture(service.picture(units.sent(images[0], "init_images[0]")))
    strength = _strength(values.get("denoising_strength", 0.75))
    given: dict[str, Any] = {"strength": strength, "resize": _resize(values, picture)}
    if not (mask := values.get("mask")):
        return given | {"image": {"data": encode(picture)}}
    region = as_picture(service.picture(units.sent(mask, "mask"))).convert("L")
    if region.size != picture.size:  # as there: each is fitted by itself
        region = region.resize(picture.size, Image.Resampling.BILINEAR)
    if units.whole(values.get("inpainting_mask_invert", 0), "inpainting_mask_invert", 0, 1):
        region = ImageOps.invert(region)
    fill = units.whole(values.get("inpainting_fill", 0), "inpainting_fill", 0, 3)
    if fill > 1 and strength < 1:
        raise ParameterError(
            "inpainting_fill",
            found=f"{fill} ({_FILLS[fill]}) with a denoising_strength of {strength:g}",
            expected="0 (the colours around) or 1 (the picture itself), or a strength of 1",
            fix="At a strength of 1 what is masked begins with noise alone.",
        )
    if fill == 0:
        picture = filled(picture, region)
    if values.get("inpaint_full_res", True):
        given["margin"] = units.whole(
            values.get("inpaint_full_res_padding", 0), "inpaint_full_res_padding", 0, 8192
        )
    blur = units.number(values.get("mask_blur", 4), "mask_blur")
    pictures = {"image": {"data": encode(picture)}, "mask": {"data": encode(region)}}
    return {**given, **pictures, "blur": blur}


def _strength(value: object) -> float:
    found = units.number(value, "denoising_strength")
    if not 0 < found <= 1:
        raise ParameterError("denoising_strength", found=f"{found:g}", expected="a number above 0, at most 1")
    return found


def _resize(values: dict[str, Any], picture: Image.Image) -> str:
    mode = units.whole(values.get("resize_mode", 0), "resize_mode", 0, 3)
    width, height = values.get("width") or 512, values.get("height") or 512
    if mode < 2:
        return _RESIZES[mode]
    if picture.width * height != picture.height * width:
        raise ParameterError(
            "resize_mode",
            found=f"{mode} ({_RESIZES[mode]}) with a picture of another shape",
            expected="0 (just resize) or 1 (crop and resize)",
            fix=f"The picture has {picture.width} x {picture.height} pixels, the run {width} x {height}.",
        )
    return "stretch"


def _only(values: dict[str, Any], name: str, known: tuple[object, ...]) -> None:
    if values.get(name, known[0]) not in known:
        raise ParameterError(name, found=f"{values[name]!r:.60}", expected=f"{known[0]}")


def filled(picture: Image.Image, region: Image.Image) -> Image.Image:
    """A picture with the colours of what is around it where it is masked, the smoother the farther inside.

    Averages of what is known are taken over squares of 2, 4, 8, … pixels, and holes are filled from the next
    coarser ones (pull and push: Gortler and others, "The Lumigraph", 1996, section 3.4).

    Args:
        picture: RGB.
        region: Mode L, of the same size, white where it is filled.
    """
    colours = np.asarray(picture, np.float32)
    known = (np.asarray(region) < PAINTED).astype(np.float32)[..., None]
    if not known.any():
        return Image.new("RGB", picture.size, (127, 127, 127))
    made = _pulled(colours * known, known)
    return Image.fromarray(np.where(known > 0, colours, np.rint(made)).astype(np.uint8))


def _pulled(colours: Any, weights: Any) -> Any:
    """Colours (h, w, 3), premultiplied by their weights (h, w, 1), without holes."""
    height, width = weights.shape[:2]
    if max(height, width) == 1:
        return colours / np.maximum(weights, 1e-6)
    edges = ((0, height % 2), (0, width % 2), (0, 0))
    coarse = [_halved(np.pad(each, edges)) for each in (colours, weights)]
    share = np.minimum(coarse[1], 1)
    below = _pulled(coarse[0] / np.maximum(coarse[1], 1e-6) * share, share)
    smooth = Image.Resampling.BILINEAR
    doubled = [Image.fromarray(below[..., k]).resize((width, height), smooth) for k in range(3)]
    return colours + (1 - weights) * np.stack([np.asarray(each) for each in doubled], axis=-1)


def _halved(values: Any) -> Any:
    """Sums over squares of two by two."""
    height, width, depth = values.shape
    return values.reshape(height // 2, 2, width // 2, 2, depth).sum(axis=(1, 3))
