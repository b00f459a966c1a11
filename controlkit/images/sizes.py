"""Bring a map to the size that is needed, in the way its content asks for.

Smoothing turns a label into a label in between, which is another class, and a one-pixel line into gray fog,
which no edge model has seen. So the content decides:

- *labels*, few flat colours: nearest neighbour;
- *lines*, thin and of one brightness, on black or on white: shrinking keeps every cell that a line passes
  through (maximum); either way the lines are thinned back to one pixel;
- anything else: averaged over the area when shrinking, bicubic and clamped when enlarging.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from controlkit.errors import ParameterError
from controlkit.images.thinning import thin

Resize = Literal["stretch", "crop", "pad"]
Content = Literal["labels", "lines", "smooth"]

MAX_LABELS = 200
MAX_GRAY_LABELS = 16
"""Distinct colours (or grays) up to which a map is taken for labels. Depth maps have more grays."""

_MOST_PASSES = 32
"""Of thinning: ends strokes of up to twice as many pixels."""


def fit(
    map: Tensor | list[Tensor],
    size: tuple[int, int],
    *,
    resize: Resize = "stretch",
    labels: bool | Literal["auto"] = "auto",
) -> tuple[Tensor, str | None]:
    """Resize maps to (height, width).

    Args:
        map: (n, C, H, W) float in [0, 1] (or [-1, 1]), or a list of such with sizes of their own.
        size: Height and width that are needed, in pixels.
        resize: ``stretch`` to the size; ``crop``: fill it, keep the proportions, cut the excess evenly;
            ``pad``: fit into it, keep the proportions, centred on black.
        labels: Whether values are classes that must not be mixed; ``auto`` looks at the content.

    Returns:
        (sum of n, C, height, width), and a note such as ``map resized 512x768 -> 64x96 (stretch, area)``,
        sizes as height x width. A map of the right size is returned as the very tensor it is, with None.

    Raises:
        ParameterError: A size that is not two positive integers, or an unknown ``resize``.
    """
    height, width = _checked(size, resize)
    if isinstance(map, Tensor):
        if tuple(map.shape[-2:]) == (height, width):
            return map, None
        rows = list(map.split(1))
    else:
        rows = [row for part in map for row in part.split(1)]
    fitted, notes = [], dict[str, None]()
    for row in rows:
        if tuple(row.shape[-2:]) == (height, width):
            fitted.append(row)
            continue
        result, method = _fit_one(row, height, width, resize, labels)
        fitted.append(result)
        source = f"{row.shape[-2]}x{row.shape[-1]}"
        notes[f"map resized {source} -> {height}x{width} ({resize}, {method})"] = None
    return torch.cat(fitted), "; ".join(notes) or None


def content(row: Tensor) -> Content:
    """What kind of map this is.

    Args:
        row: (1, C, H, W) in [0, 1].
    """
    if _lines(row) is not None:
        return "lines"
    codes = (row[0].float() * 255).round().to(torch.int64).clamp(-255, 255)
    weights = torch.tensor([1 << (10 * i) for i in range(min(codes.shape[0], 6))], device=codes.device)
    flat = (codes[: len(weights)] * weights.view(-1, 1, 1)).sum(0)
    if flat.numel() > 65536 and torch.unique(flat.flatten()[:: flat.numel() // 16384]).numel() > MAX_LABELS:
        return "smooth"
    count = torch.unique(flat).numel()
    gray = bool((codes == codes[:1]).all())
    few = count <= (MAX_GRAY_LABELS if gray else MAX_LABELS) and count * 8 <= flat.numel()
    return "labels" if few or count <= 2 else "smooth"


def _lines(row: Tensor) -> tuple[Tensor, bool] | None:
    """Thin lines of one brightness, as canny draws them, also after JPEG compression.

    Returns:
        Where the lines are, (1, 1, H, W) bool, and whether they are dark on bright; None for other maps.
    """
    high, low = float(row.max()), float(row.min())
    level = (high + low) / 2
    if low < 0 or low > 0.25 * high or min(row.shape[-2:]) < 3:
        return None
    if float((row - row[:, :1]).abs().max()) > 0.25 * (high - low):
        return None
    gray = row[:, :1]
    on = gray > level
    dark = int(on.sum()) * 2 > on.numel()
    on = ~on if dark else on
    count = int(on.sum())
    between = int(((gray - level).abs() < 0.25 * (high - low)).sum())
    solid = int((F.max_pool2d((~on).float(), 3, stride=1) == 0).sum())
    return (on, dark) if count and between <= 0.1 * count and solid <= 0.01 * count else None


def _checked(size: tuple[int, int], resize: str) -> tuple[int, int]:
    if resize not in ("stretch", "crop", "pad"):
        raise ParameterError(
            "resize",
            found=repr(resize),
            expected="'stretch', 'crop' or 'pad'",
            fix="The default is 'stretch'.",
            code="CK-H19",
        )
    sides = tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ParameterError(
            "size",
            found=repr(size),
            expected="(height, width), whole pixels above 0",
            fix="Take it from the latents: eight times their size, usually.",
            code="CK-H19",
        )
    return sides[0], sides[1]


def _fit_one(
    row: Tensor, height: int, width: int, resize: Resize, labels: bool | Literal["auto"]
) -> tuple[Tensor, str]:
    kind: Content = content(row) if labels == "auto" else "labels" if labels else "smooth"
    rows, columns = row.shape[-2:]
    if resize == "stretch":
        return _scale(row, height, width, kind)
    factor = (max if resize == "crop" else min)(height / rows, width / columns)
    inner = max(1, round(rows * factor)), max(1, round(columns * factor))
    scaled, method = _scale(row, *inner, kind) if inner != (rows, columns) else (row, "unscaled")
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    if resize == "pad":
        right, bottom = width - inner[1] - left, height - inner[0] - top
        return F.pad(scaled, (left, right, top, bottom)), method
    top, left = -top, -left
    return scaled[..., top : top + height, left : left + width], method


def _scale(row: Tensor, height: int, width: int, kind: Content) -> tuple[Tensor, str]:
    if kind == "labels":
        return F.interpolate(row, (height, width), mode="nearest-exact"), "nearest"
    if kind == "lines":
        return _scale_lines(row, height, width), "lines kept"
    low, high = float(row.min()), float(row.max())
    smaller = min(height, row.shape[-2]), min(width, row.shape[-1])
    method = []
    if smaller != tuple(row.shape[-2:]):
        row = F.interpolate(row, smaller, mode="area")
        method.append("area")
    if smaller != (height, width):
        row = F.interpolate(row, (height, width), mode="bicubic").clamp(low, high)
        method.append("bicubic")
    return row, " and ".join(method)


def _scale_lines(row: Tensor, height: int, width: int) -> Tensor:
    """Resize thin binary lines so that they stay whole, binary and thin.

    Each target pixel is on where any source pixel that falls into it is on, so that nothing is lost; what has
    become broader than one pixel, by enlarging or because lines lie close, is thinned again.
    """
    rows, columns = row.shape[-2:]
    found = _lines(row)
    assert found is not None
    on, dark = found[0].float(), found[1]
    if height < rows or width < columns:
        inner = min(height, rows), min(width, columns)
        down = torch.arange(rows, device=row.device) * inner[0] // rows
        across = torch.arange(columns, device=row.device) * inner[1] // columns
        cell = (down[:, None] * inner[1] + across[None]).flatten()
        on = on.new_zeros(math.prod(inner)).scatter_reduce(0, cell, on.flatten(), "amax").view(1, 1, *inner)
    if (height, width) != tuple(on.shape[-2:]):
        on = F.interpolate(on, (height, width), mode="nearest-exact")
    on = thin(on, _MOST_PASSES)
    return torch.where(on.bool() ^ dark, row.max(), row.min()).expand(1, row.shape[1], height, width)
