"""What the pixels of a Pillow image are, whatever its mode: 8-bit, 16-bit, palette, CMYK, with alpha, …"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from controlkit.errors import HintError, ParameterError
from controlkit.images.limits import check_size, tell

Background = str | tuple[int, int, int]

_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def pixels(
    image: Image.Image,
    *,
    gray: bool = False,
    background: Background = "black",
    any_aspect: bool = False,
    what: str = "image",
    notes: list[str] | None = None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The pixels of an image, oriented and opaque.

    Args:
        image: Any mode. Of an animation, the frame it stands at (the first, unless it was sought).
        gray: One channel (ITU-R 601 luma, as Pillow's ``L``) instead of three.
        background: What transparent pixels are laid on.
        any_aspect: Accept sides of any proportion.
        what: Name for errors and notes.
        notes: Where notes go; None: warnings.

    Returns:
        (height, width, 1 or 3): uint8 as stored for 8-bit modes, otherwise float32 in [0, 1].

    Raises:
        HintError: No pixels (CK-H1), extreme aspect (CK-H2), wide values without a known range (CK-H3),
            undecodable (CK-H10).
        HintTooBig: CK-H11, before anything is decoded.
    """
    check_size(image.width, image.height, what, any_aspect=any_aspect, notes=notes)
    image = upright(image, what, notes)
    if image.mode in _WIDE:
        wide = _wide(image, what, notes)[..., None]
        return wide if gray else np.repeat(wide, 3, axis=2)
    image = _opaque(_plain(image, what, notes), background, what, notes)
    target = "L" if gray else "RGB"
    array = np.array(image if image.mode == target else image.convert(target))
    return array[..., None] if gray else array


def upright(image: Image.Image, what: str, notes: list[str] | None = None) -> Image.Image:
    """Decode and apply the EXIF orientation; the result carries no orientation any more.

    Multi-picture JPEGs (a second view or a preview beside the photograph) are not noted as animations.

    Raises:
        HintError: CK-H10, the file behind the image is damaged or closed.
    """
    try:
        several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
        image.load()
    except Exception as error:
        raise HintError(
            what,
            found=f"an image that cannot be decoded ({error})",
            expected="a complete picture",
            fix="Open or download it again; the file may have been cut off, or closed too early.",
            code="CK-H10",
        ) from error
    if several:
        tell(f"{what} has several frames; frame {image.tell()} is used", notes)
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        tell(f"{what} has EXIF data that cannot be read; its orientation is ignored ({error})", notes)
        return image.copy()


def _wide(image: Image.Image, what: str, notes: list[str] | None) -> NDArray[np.float32]:
    """Modes of more than 8 bits, (height, width) in [0, 1], by the full scale of their type.

    ``I;16`` says its range; ``I`` and ``F`` do not, so the smallest usual one that holds the values is
    taken, and noted.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return np.divide(values, 65535, dtype=np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise HintError(
            what,
            found=f"{int(bad.sum())} NaN or infinite values, the first at row {row}, column {column}",
            expected="finite values",
            fix="Replace them, for example with numpy.nan_to_num.",
            code="CK-H13",
        )
    low, high = float(values.min()), float(values.max())
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    scale = next((s for s in scales if high <= s), None)
    if low < 0 or scale is None:
        raise HintError(
            what,
            found=f"mode {image.mode} with values from {low:g} to {high:g}",
            expected="values from 0 to 1, 255 or 65535",
            fix="Scale it to [0, 1] yourself and pass a float array: this mode does not say its range.",
            code="CK-H3",
        )
    if scale != 1:
        tell(f"{what} has mode {image.mode}, which states no range; read as 0..{scale:g}", notes)
    return (values.astype(np.float64) / scale).astype(np.float32)


def _plain(image: Image.Image, what: str, notes: list[str] | None) -> Image.Image:
    """Convert colour spaces that are not gray or RGB; the numbers of those that are stay as they are."""
    if image.mode not in ("CMYK", "LAB"):
        profile = image.info.get("icc_profile")
        if profile and image.mode in ("L", "LA", "RGB", "RGBA", "P") and not _is_srgb(profile):
            tell(f"{what} has a colour profile that is not sRGB; its numbers are used as they are", notes)
        return image
    from PIL import ImageCms

    target = ImageCms.createProfile("sRGB")
    embedded = image.info.get("icc_profile")
    source = ImageCms.createProfile("LAB") if image.mode == "LAB" else None
    try:
        if embedded:
            source = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        if source is not None:
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    except (ImageCms.PyCMSError, OSError) as error:
        tell(f"{what} has a colour profile that cannot be used ({error})", notes)
        if image.mode == "LAB":
            return (
                ImageCms.applyTransform(
                    image, ImageCms.buildTransform(ImageCms.createProfile("LAB"), target, "LAB", "RGB")
                )
                or image
            )
    return image.convert("RGB")


def _is_srgb(profile: bytes) -> bool:
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return False
    return "srgb" in name.lower()


def _may_be_transparent(image: Image.Image) -> bool:
    """As Pillow 10.1's ``has_transparency_data``, which the web UIs' older ones lack."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _opaque(image: Image.Image, background: Background, what: str, notes: list[str] | None) -> Image.Image:
    """Lay transparent pixels on the background."""
    if not _may_be_transparent(image):
        return image
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    layer = (image.convert(straight) if straight else image).convert("RGBA")
    low, _ = layer.getchannel("A").getextrema()
    if low == 255:
        return layer.convert("RGB")
    tell(f"{what} has transparent pixels; laid on {background}", notes)
    ground = Image.new("RGBA", layer.size, (*_colour(background), 255))
    return Image.alpha_composite(ground, layer).convert("RGB")


def _colour(background: Background) -> tuple[int, int, int]:
    try:
        parts = ImageColor.getrgb(background) if isinstance(background, str) else tuple(background)
        if len(parts) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in parts):
            return (parts[0], parts[1], parts[2])
    except (ValueError, TypeError):
        pass
    raise ParameterError(
        "background",
        found=repr(background),
        expected="a colour name, '#rrggbb', or three integers from 0 to 255",
        fix="Use 'black' (the default) or 'white'.",
        code="CK-H5",
    )
