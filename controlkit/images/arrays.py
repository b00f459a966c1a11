"""What the values and axes of an array or tensor mean: type, range and layout.

Where numpy and torch differ (channels last or first) the habit of each counts for batches; a single picture
whose shape fits both readings is refused.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlkit.errors import DeviceMismatch, HintError
from controlkit.images.limits import check_size, tell

LOWEST, HIGHEST = -0.01, 1.5
"""Floats outside are not [0, 1] data; between these and [0, 1] lies overshoot of resampling."""


def pixels(
    array: NDArray[np.generic] | Tensor,
    channels: int,
    *,
    what: str = "image",
    lowest: float = 0.0,
    any_aspect: bool = False,
    notes: list[str] | None = None,
) -> Tensor:
    """The pixels of an array or tensor.

    Args:
        array: (H, W), (H, W, C), (C, H, W), (n, H, W, C) or (n, C, H, W); bool, uint8, uint16 or float.
        channels: How many are needed. Two-dimensional input is repeated to it; three channels where one is
            needed become ITU-R 601 luma; anything else must fit.
        what: Name for errors and notes.
        lowest: Lower end of the range of floats: 0, or -1 for maps that mark hidden pixels with -1.
        any_aspect: Accept sides of any proportion.
        notes: Where notes go; None: warnings.

    Returns:
        (n, channels, H, W) on the input's device, without gradient: uint8 as given, else float32 in
        [``lowest``, 1]. Memory of its own.

    Raises:
        HintError: CK-H1, H2, H13 (not finite), H14 (range), H16 (layout), H17 (channels), H21 (type).
        DeviceMismatch: A meta tensor.
    """
    tensor = array.detach() if isinstance(array, Tensor) else None
    if tensor is None:
        assert isinstance(array, np.ndarray)
        tensor = _from_numpy(array, what)
    shape = tuple(tensor.shape)
    first = _channels_first(shape, channels, what, last_by_habit=isinstance(array, np.ndarray))
    if first is None:
        height, width = shape
    else:
        height, width = shape[-2:] if first else shape[-3:-1]
    if len(shape) == 4 and shape[0] == 0:
        raise _refuse(
            what, f"an empty batch, shape {shape}", "at least one picture", "Check the slice.", "CK-H20"
        )
    check_size(width, height, what, any_aspect=any_aspect, notes=notes)
    _check_kind(tensor, what)
    tensor = _in_range(tensor, what, lowest, notes)
    if first is None:
        tensor = tensor.expand(1, channels, height, width)
    else:
        tensor = tensor if tensor.ndim == 4 else tensor[None]
        tensor = tensor if first else tensor.permute(0, 3, 1, 2)
    if channels == 1 and tensor.shape[1] == 3:
        tensor = _luma(tensor)
    return tensor.clone(memory_format=torch.contiguous_format)


def _refuse(what: str, found: str, expected: str, fix: str, code: str) -> HintError:
    return HintError(what, found=found, expected=expected, fix=fix, code=code)


def _from_numpy(array: NDArray[np.generic], what: str) -> Tensor:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise _refuse(what, "a masked array", "plain values", "Fill it first: array.filled(0).", "CK-H21")
    array = np.asarray(array)
    if array.dtype.kind not in "biufc":
        raise _refuse(
            what,
            f"an array of {array.dtype}",
            "uint8, uint16, bool or float",
            "Stack equal-sized pictures with numpy.stack, or pass a list of them.",
            "CK-H21",
        )
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    return torch.from_numpy(np.array(array, dtype=dtype, order="C", copy=True, subok=False))


def _check_kind(tensor: Tensor, what: str) -> None:
    """Refuse element types and storages that hold no picture."""
    if tensor.is_meta:
        raise DeviceMismatch(
            what,
            found="a meta tensor, which holds no values",
            expected="a tensor with values",
            fix="Make it on 'cpu' or the device of the pipeline.",
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout)
        raise _refuse(what, f"a {kind} tensor", "a dense one", "Call to_dense() or dequantize().", "CK-H21")
    known = (torch.uint8, torch.uint16, torch.bool)
    if not tensor.is_floating_point() and tensor.dtype not in known:
        name = str(tensor.dtype).removeprefix("torch.")
        fix = "Say the range by the type: uint8 for 0..255, uint16, or bool for a mask."
        if tensor.is_complex():
            fix = "Take the real part or the magnitude."
        raise _refuse(what, f"elements of type {name}", "uint8, uint16, bool or float", fix, "CK-H21")


def _in_range(tensor: Tensor, what: str, lowest: float, notes: list[str] | None) -> Tensor:
    """uint8 as it is; everything else as float32 in [lowest, 1]."""
    if tensor.dtype == torch.uint8:
        if tensor.numel() and int(tensor.max()) == 1:
            tell(f"{what} is uint8 with no value above 1, nearly black; a 0/1 mask should be bool", notes)
        return tensor
    if tensor.dtype == torch.bool:
        return tensor.float()
    if tensor.dtype == torch.uint16:
        return tensor.to(torch.int32).float() / torch.tensor(65535.0, device=tensor.device)
    values = tensor if tensor.dtype == torch.float64 else tensor.float()
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = (~finite).nonzero()
        index = tuple(int(i) for i in bad[0])
        raise _refuse(
            what,
            f"{len(bad)} NaN or infinite {'value' if len(bad) == 1 else 'values'}, the first at {index}",
            "finite values",
            "Replace them, for example with nan_to_num.",
            "CK-H13",
        )
    low, high = float(values.min()), float(values.max())
    if low < lowest + LOWEST or high > HIGHEST:
        cause, fix = _cause(low, high)
        raise _refuse(
            what, f"values from {low:.4g} to {high:.4g}, {cause}", f"[{lowest:g}, 1]", fix, "CK-H14"
        )
    over = int(((values < lowest - 1e-6) | (values > 1 + 1e-6)).sum())
    if over:
        tell(f"{what} has {over} values outside [{lowest:g}, 1] ({low:.4g} to {high:.4g}); clamped", notes)
    return values.float().clamp(lowest, 1.0)


def _cause(low: float, high: float) -> tuple[str, str]:
    """What float values outside [0, 1] most likely are, and what to do."""
    if low >= LOWEST and high <= 256:
        return "most likely 0..255", "Divide by 255, or pass it as uint8."
    if low >= LOWEST and high <= 65536:
        return "most likely 0..65535", "Divide by 65535, or pass it as uint16."
    if low >= -1.01 and high <= 1.01:
        return "most likely -1..1", "Use (x + 1) / 2."
    if low >= -5 and high <= 5:
        return "most likely normalised by mean and deviation", "Undo the normalisation to get [0, 1] back."
    return "no usual range", "Scale it to [0, 1]."


def _channels_first(shape: tuple[int, ...], channels: int, what: str, last_by_habit: bool) -> bool | None:
    """Whether the channel axis comes before height and width; None: there is no channel axis.

    Raises:
        HintError: CK-H16 where no or more than one reading fits, CK-H17 where the channels are too many or
            too few.
    """
    if len(shape) == 2:
        return None
    if len(shape) not in (3, 4):
        raise _refuse(
            what,
            f"shape {shape}, {len(shape)} axes",
            "height and width, with channels and batch at most: 2 to 4 axes",
            "Index or reshape it to (H, W, 3) or (n, 3, H, W).",
            "CK-H16",
        )
    for wanted in (channels, 3) if channels == 1 else (channels,):
        first, last = shape[-3] == wanted, shape[-1] == wanted
        if first and last and len(shape) == 3 and shape != (1, 1, 1):
            raise _refuse(
                what,
                f"shape {shape}, which reads as (C, H, W) and as (H, W, C)",
                "a shape with one reading",
                "Add the batch axis: (n, H, W, C) for numpy, (n, C, H, W) for torch.",
                "CK-H16",
            )
        if first or last:
            return first and not (last and last_by_habit)
    first = not last_by_habit if shape[-1] <= 6 and shape[-3] <= 6 else shape[-3] <= 6
    found = shape[-3] if first else shape[-1]
    reading = ("n, " if len(shape) == 4 else "") + ("C, H, W" if first else "H, W, C")
    if not first and shape[-1] > 6:
        raise _refuse(
            what, f"shape {shape}", f"{channels} channels, first or last", _channel_fix(0, channels), "CK-H16"
        )
    raise _refuse(
        what,
        f"{found} channel{'s' * (found != 1)} in shape {shape}, read as ({reading})",
        f"{channels} channel{'s' * (channels != 1)}",
        _channel_fix(found, channels),
        "CK-H17",
    )


def _channel_fix(found: int, channels: int) -> str:
    if found == 1 and channels == 3:
        return "Drop the channel axis, as in (H, W): gray is then repeated."
    if found == 4 and channels in (1, 3):
        return "Drop the alpha channel, or pass a PIL image (RGBA is laid on a background)."
    if channels == 3:
        return "Pass RGB as (H, W, 3) or (n, 3, H, W), or gray as (H, W)."
    return f"Pass (n, {channels}, H, W)."


def _luma(tensor: Tensor) -> Tensor:
    """ITU-R 601 luma of (n, 3, H, W); equal channels come out unchanged, uint8 as Pillow's ``L``."""
    if tensor.dtype == torch.uint8:
        weights = torch.tensor([19595, 38470, 7471], device=tensor.device).view(1, 3, 1, 1)
        total = (tensor.to(torch.int32) * weights).sum(1, keepdim=True)
        return ((total + 0x8000) >> 16).to(torch.uint8)
    if bool((tensor == tensor[:, :1]).all()):
        return tensor[:, :1]
    weights = torch.tensor([0.299, 0.587, 0.114], device=tensor.device).view(1, 3, 1, 1)
    return (tensor * weights).sum(1, keepdim=True).clamp(-1.0, 1.0)
