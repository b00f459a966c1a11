"""Turn whatever holds a picture into a control map, a mask or a photograph, or say why it cannot be.

PIL pictures become photographs without torch, so that detectors start at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from controlkit.errors import DeviceMismatch, HintError, ParameterError
from controlkit.images import pictures
from controlkit.images.pictures import Background
from controlkit.images.tensors import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

ChannelOrder = Literal["rgb", "bgr"]


def as_map(
    image: Any,
    *,
    channels: int = 3,
    what: str = "image",
    channel_order: ChannelOrder | None = None,
    background: Background = "black",
    lowest: float = 0.0,
    any_aspect: bool = False,
    notes: list[str] | None = None,
) -> Tensor | list[Tensor]:
    """Read a control map, or one per prompt.

    A uint8 RGB picture gives, to the bit, what diffusers' ``VaeImageProcessor(do_normalize=False,
    do_convert_rgb=True)`` makes of it at the same size.

    Args:
        image: A PIL image of any mode; a numpy array or torch tensor, (H, W), (H, W, 3), (3, H, W),
            (n, H, W, 3) or (n, 3, H, W), of uint8, uint16, bool or float in [0, 1]; or a list or tuple with
            one such picture per prompt, of mixed types if need be.
        channels: How many the module reads. 3: gray is repeated. 1: RGB becomes luma. Other counts: arrays
            and tensors of that count only.
        what: Name of the argument in errors and notes; entries of a list are ``what[i]``.
        channel_order: The order the module was trained on; ``bgr`` swaps red and blue. The order of the
            input cannot be seen: it is taken for RGB (OpenCV's arrays are BGR).
        background: What transparent pixels of PIL images are laid on.
        lowest: Lower end of the range of floats: 0, or -1 for maps that mark hidden pixels with -1.
        any_aspect: Accept sides beyond 16:1.
        notes: A list to append notes to; None: each note is a `ControlKitWarning`.

    Returns:
        (n, channels, H, W) float32 in [``lowest``, 1], sharing no memory with the input, on the input's
        device. Where the pictures of a list have different sizes: a list of (1, channels, H, W); `fit` takes
        both.

    Raises:
        HintError: The picture cannot be used; the code (CK-H1 to CK-H21) says why.
        HintTooBig: More than `MAX_PIXELS` pixels.
        ParameterError: A wrong ``channel_order`` or ``background``.
        DeviceMismatch: Meta tensors, or a list over several devices.
    """
    if channel_order not in (None, "rgb", "bgr") or (channel_order == "bgr" and channels != 3):
        raise ParameterError(
            "channel_order",
            found=f"{channel_order!r} for {channels} channels",
            expected="'rgb', or 'bgr' for a map with three channels",
            fix="Leave it out for RGB.",
            code="CK-H18",
        )

    def read(entry: Any, name: str) -> Tensor:
        rows = _rows(entry, channels, name, background, lowest, any_aspect, notes)
        rows = _unit(rows)
        return rows.flip(1) if channel_order == "bgr" else rows

    if not isinstance(image, (list, tuple)):
        return read(image, what)
    rows = [
        _single(read(entry, f"{what}[{i}]"), f"{what}[{i}]") for i, entry in enumerate(_entries(image, what))
    ]
    if len(devices := {str(row.device) for row in rows}) > 1:
        raise DeviceMismatch(
            what,
            found=f"tensors on {' and '.join(sorted(devices))}",
            expected="one device",
            fix="Move them to one device first.",
        )
    if len({row.shape for row in rows}) > 1:
        return rows
    import torch

    return torch.cat(rows)


def as_mask(
    mask: Any, *, what: str = "mask", any_aspect: bool = False, notes: list[str] | None = None
) -> Tensor | list[Tensor]:
    """Read a region: 1 is inside, 0 outside, between is partly inside.

    Args:
        mask: As for `as_map`; colour becomes luma, transparent is outside.
        what: Name of the argument in errors and notes.
        any_aspect: Accept sides beyond 16:1.
        notes: A list to append notes to; None: each note is a `ControlKitWarning`.

    Returns:
        (n, 1, H, W) float32 in [0, 1], or a list of (1, 1, H, W) where sizes differ.

    Raises:
        HintError: As for `as_map`.
    """
    return as_map(mask, channels=1, what=what, any_aspect=any_aspect, notes=notes)


def as_picture(
    image: Any,
    *,
    what: str = "image",
    background: Background = "black",
    any_aspect: bool = False,
    notes: list[str] | None = None,
) -> Image.Image:
    """Read one photograph, for a detector.

    Args:
        image: As for `as_map`, holding one picture.
        what: Name of the argument in errors and notes.
        background: What transparent pixels are laid on.
        any_aspect: Accept sides beyond 16:1.
        notes: A list to append notes to; None: each note is a `ControlKitWarning`.

    Returns:
        An RGB image of its own, at the input's size (after EXIF orientation), with an empty ``info``.

    Raises:
        HintError: As for `as_map`; also when there is more than one picture (CK-H20).
    """
    found = as_pictures(image, what=what, background=background, any_aspect=any_aspect, notes=notes)
    if len(found) != 1:
        raise HintError(
            what,
            found=f"{len(found)} pictures",
            expected="one",
            fix="Pass them one at a time, or use as_pictures.",
            code="CK-H20",
        )
    return found[0]


def as_pictures(
    image: Any,
    *,
    what: str = "image",
    background: Background = "black",
    any_aspect: bool = False,
    notes: list[str] | None = None,
) -> list[Image.Image]:
    """Read photographs: the pictures of a list or batch, or the only one; see `as_picture`."""

    def read(entry: Any, name: str, several: bool = False) -> list[Image.Image]:
        if isinstance(entry, Image.Image):
            values = pictures.pixels(
                entry, background=background, any_aspect=any_aspect, what=name, notes=notes
            )
            bytes_ = values if values.dtype == np.uint8 else np.rint(values.clip(0, 1) * 255)
            return [Image.fromarray(np.ascontiguousarray(bytes_, np.uint8))]
        rows = _rows(entry, 3, name, background, 0.0, any_aspect, notes)
        return [to_picture(row) for row in (_single(rows, name) if several else rows)]

    if not isinstance(image, (list, tuple)):
        return read(image, what)
    named = [(entry, f"{what}[{i}]") for i, entry in enumerate(_entries(image, what))]
    return [picture for entry, name in named for picture in read(entry, name, several=True)]


def to_picture(row: Tensor) -> Image.Image:
    """A PIL image of one map.

    Args:
        row: (1 or 3, H, W), uint8 or float in [0, 1] (rounded to 8 bits, clamped).

    Returns:
        Mode L or RGB.
    """
    import torch

    if row.dtype != torch.uint8:
        row = (row.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    array = np.ascontiguousarray(row.permute(1, 2, 0).cpu().numpy())
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _rows(
    image: Any,
    channels: int,
    what: str,
    background: Background,
    lowest: float,
    any_aspect: bool,
    notes: list[str] | None,
) -> Tensor:
    """(n, channels, H, W), uint8 or float32."""
    if isinstance(image, np.ndarray) or is_tensor(image):
        from controlkit.images import arrays

        return arrays.pixels(image, channels, what=what, lowest=lowest, any_aspect=any_aspect, notes=notes)
    if not isinstance(image, Image.Image):
        raise _not_an_image(image, what)
    if channels not in (1, 3):
        raise HintError(
            what,
            found=f"a PIL image of mode {image.mode}",
            expected=f"{channels} channels",
            fix=f"Pass a tensor (n, {channels}, H, W).",
            code="CK-H17",
        )
    array = pictures.pixels(
        image, gray=channels == 1, background=background, any_aspect=any_aspect, what=what, notes=notes
    )
    import torch

    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def _single(rows: Tensor, what: str) -> Tensor:
    """The rows of a list's entry, which is one picture."""
    if rows.shape[0] != 1:
        raise HintError(
            what,
            found=f"a batch of {rows.shape[0]} pictures",
            expected="one picture per entry of the list",
            fix="Pass one batch, or a list of single pictures.",
            code="CK-H20",
        )
    return rows


def _unit(rows: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], by a true division everywhere (GPUs multiply by a rounded 1/255)."""
    import torch

    if rows.dtype != torch.uint8:
        return rows
    return rows.float() / torch.tensor(255.0, device=rows.device)


def _entries(image: list[Any] | tuple[Any, ...], what: str) -> list[Any]:
    if not image:
        raise HintError(
            what,
            found=f"an empty {type(image).__name__}",
            expected="one picture per prompt",
            fix="Leave the control out where there is nothing to show.",
            code="CK-H20",
        )
    return list(image)


def _not_an_image(image: Any, what: str) -> HintError:
    found, fix = f"an object of type {type(image).__name__}", "Pass a PIL image, a numpy array or a tensor."
    if image is None:
        found, fix = "None", "Pass the picture; was the file not found, or the function without a return?"
    elif isinstance(image, (str, PathLike)):
        found = f"{'a text' if isinstance(image, str) else 'a path'}, {str(image)[:80]!r}"
        fix = "Open it first: ck.open_image(path) or PIL.Image.open(path). Addresses are never fetched."
    elif isinstance(image, (bytes, bytearray, memoryview)):
        found = f"{len(image)} raw bytes"
        fix = "Open them first: ck.open_image(io.BytesIO(data))."
    elif isinstance(image, (list, tuple)):
        found, fix = f"a nested {type(image).__name__}", "Pass numpy.asarray(...) of it, or a flat list."
    elif isinstance(image, (Iterator, Set, Mapping)):
        fix = "Pass a list: list(...)."
    elif isinstance(image, type):
        found, fix = f"the class {image.__name__}", "Pass an object."
    return HintError(
        what, found=found, expected="a PIL image, a numpy array or a tensor", fix=fix, code="CK-H20"
    )
