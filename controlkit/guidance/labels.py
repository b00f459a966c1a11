"""Guidance by a segmentation map: what a network says of each pixel's label, or the colour of each region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from controlkit.errors import HintError, ParameterError
from controlkit.guidance.colours import read_colours
from controlkit.guidance.likelihood import Likelihood, Sees, per_image
from controlkit.guidance.targets import (
    Compared,
    Network,
    OfNetwork,
    answer,
    one_of,
    pictures_like,
    positive,
    read_network,
    read_pictures,
    squares,
    takes_times,
)

_FAR = 24 / 255
"""Of a pixel from its palette colour; where many pixels are farther, the map is in other colours."""
_IGNORED = -1


@dataclass(frozen=True, eq=False)
class LabelLikelihood(OfNetwork):
    """phi of a segmentation network; see `segmentation`."""

    network: Network
    timed: bool
    palette: Tensor | None
    ignore: tuple[int, ...]
    weight: float
    sees: Sees = "noisy"

    def read(self, y: Any) -> Tensor:
        return read_labels(y, self.palette, self.ignore)

    def value(self, x: Tensor, goal: Tensor, t: Tensor) -> Tensor:
        logits = answer(self.network, x, t, timed=self.timed)
        if logits.ndim != 4:
            raise ParameterError(
                "network", found=f"logits of shape {tuple(logits.shape)}", expected="(images, labels, h, w)"
            )
        labels = resize_labels(goal, (logits.shape[-2], logits.shape[-1]))
        if bool((labels >= logits.shape[1]).any()):
            raise ParameterError(
                "y", found=f"label {int(labels.max())}", expected=f"labels from 0 to {logits.shape[1] - 1}"
            )
        labels = per_image(labels, x.shape[0])
        counted = (labels != _IGNORED).to(logits.dtype)
        logs = F.log_softmax(logits, dim=1).gather(1, labels.clamp_min(0)[:, None])[:, 0]
        return self.weight * (logs * counted).sum((1, 2)) / counted.sum((1, 2)).clamp_min(1)


@dataclass(frozen=True, eq=False)
class RegionColours(Compared):
    """phi of flat colours, without a network; see `segmentation`."""

    palette: Tensor | None
    ignore: tuple[int, ...]
    sigma: float
    weight: float
    sees: Sees = "image"
    channels: int | None = 3

    def read(self, y: Any) -> Tensor | list[Tensor]:
        """Pictures (n, 4, H, W): colours in [0, 1], and where they count."""
        if _is_read(y):
            return y
        if self.palette is None:
            rows = read_pictures(y)
            return [_counted(row) for row in rows] if isinstance(rows, list) else _counted(rows)
        labels = read_labels(y, self.palette, self.ignore)
        if int(labels.max()) >= len(self.palette):
            raise ParameterError(
                "y",
                found=f"label {int(labels.max())}",
                expected=f"labels from 0 to {len(self.palette) - 1}, as the palette has colours",
            )
        colours = self.palette[labels.clamp_min(0)].permute(0, 3, 1, 2)
        return torch.cat((colours, (labels != _IGNORED)[:, None].float()), dim=1)

    def fitted(self, y: Tensor | list[Tensor], seen: Tensor) -> Tensor:
        return pictures_like(y, seen, labels=True)

    def value(self, x: Tensor, goal: Tensor, t: Tensor) -> Tensor:
        goal = per_image(goal, x.shape[0])
        error = (x + 1) / 2 - goal[:, :3]
        return self.weight * -squares(error, goal[:, 3:]) / (2 * self.sigma**2)


def segmentation(
    network: Any = None,
    *,
    palette: Sequence[Any] | None = None,
    ignore: Sequence[int] = (-1, 255),
    sees: Sees | None = None,
    sigma: float = 0.1,
    weight: float = 128.0,
) -> Likelihood:
    """Towards a map of labels, by a segmentation network; or without one, by the colour of each region.

    With a network: ln p(label | x, t), the mean over pixels times ``weight``. The target is labels: whole
    numbers (H, W) or (n, H, W) as numpy or torch, or a gray or indexed PIL picture; with a palette a picture
    in its colours too. They are resized by nearest neighbour to what the network answers. Costs one pass
    through the network and back.

    Without a network: -|x - colour|² / (2 σ²) of the predicted picture's pixels, the mean over pixels times
    ``weight``. The target is a picture of flat colours; with a palette, labels too. Costs the decoding.

    Args:
        network: net(x, t) or net(x) to logits (images, labels, h, w), or an object with such ``.logits``.
            When it is told times: see `classifier`. None: go by colour.
        palette: Colour of each label, as `color` takes colours.
        ignore: Labels of pixels that do not count.
        sees: What the network reads: ``noisy`` latents (the default), ``clean`` latents, or the ``image``
            (pixels in [-1, 1]). Without a network always the image.
        sigma: Standard deviation of a pixel's channel from its region's colour, above 0; without a network.
        weight: Independent pixels that the map counts as.

    Raises:
        ParameterError: Something that cannot be called, a number out of its range, or no colours.
    """
    colours = None if palette is None else _read_palette(palette)
    ignored = tuple(ignore)
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in ignored):
        raise ParameterError("ignore", found=f"{ignore!r:.60}", expected="whole numbers")
    if network is None:
        if sees not in (None, "image"):
            raise ParameterError(
                "sees", found=repr(sees), expected="'image'", fix="Colours are seen in pictures alone."
            )
        return RegionColours(colours, ignored, positive("sigma", sigma), positive("weight", weight))
    network = read_network("network", network)
    seen = cast(Sees, one_of("sees", sees or "noisy", ("noisy", "clean", "image")))
    return LabelLikelihood(network, takes_times(network), colours, ignored, positive("weight", weight), seen)


def read_labels(y: Any, palette: Tensor | None, ignore: tuple[int, ...]) -> Tensor:
    """Label maps (n, H, W) int64 on the CPU; what does not count is -1.

    Raises:
        HintError: No map of labels, or one in which nothing counts.
        ParameterError: Labels below 0.
    """
    if isinstance(y, list | tuple) and y:
        maps = [read_labels(part, palette, ignore) for part in y]
        if len({part.shape for part in maps}) > 1 or len(maps[0]) != 1:
            raise HintError("y", found="label maps of several sizes", expected="one map each, of one size")
        return torch.cat(maps)
    if isinstance(y, Image.Image):
        y = _of_picture(y, palette is not None)
    expected = "labels: whole numbers (H, W) or (n, H, W), or a gray or indexed picture"
    if not isinstance(y, np.ndarray | Tensor):
        raise HintError("y", found=f"a {type(y).__name__}", expected=expected)
    values = torch.from_numpy(np.array(y)) if isinstance(y, np.ndarray) and y.dtype != object else y
    if not isinstance(values, Tensor) or values.is_meta or 0 in values.shape:
        raise HintError("y", found="no values", expected=expected)
    if palette is not None and _is_coloured(values):
        rows = read_pictures(y)
        assert isinstance(rows, Tensor)
        labels = _nearest(rows, palette.to(rows.device)).cpu()
    elif values.ndim not in (2, 3) or not _is_whole(values) or _is_coloured(values, last=True):
        kind = f"shape {tuple(values.shape)} of {values.dtype}".replace("torch.", "")
        fix = "Give palette= to read labels from colours." if _is_coloured(values) else ""
        raise HintError("y", found=kind, expected=expected, fix=fix)
    else:
        labels = values.detach().to("cpu", torch.int64)
        labels = labels[None] if labels.ndim == 2 else labels
    for label in ignore:
        labels = labels.masked_fill(labels == label, _IGNORED)
    if bool((labels < _IGNORED).any()) or (_IGNORED not in ignore and _is_raw_negative(values, palette)):
        raise ParameterError("y", found=f"label {int(values.min())}", expected="labels from 0 on")
    if not bool((labels != _IGNORED).flatten(1).any(1).all()):
        raise HintError("y", found="a map in which nothing counts", expected="at least one label")
    return labels


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, H, W) to (n, h, w) by nearest neighbour."""
    if tuple(labels.shape[-2:]) == size:
        return labels
    rows, columns = (
        ((torch.arange(small, device=labels.device) + 0.5) * large / small).long()
        for large, small in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[:, rows[:, None], columns[None]]


def _read_palette(palette: Sequence[Any]) -> Tensor:
    colours = read_colours(list(palette)) if isinstance(palette, list | tuple) and palette else None
    if colours is None:
        raise ParameterError("palette", found=f"{palette!r:.60}", expected="a list of colours, one per label")
    return colours


def _of_picture(y: Image.Image, has_palette: bool) -> Any:
    if y.mode in ("L", "P", "I", "I;16", "1"):
        return np.array(y).astype(np.int64)
    return np.array(y.convert("RGB")) if has_palette else np.array(y)


def _is_whole(values: Tensor) -> bool:
    return not values.is_floating_point() and not values.is_complex()


def _is_coloured(values: Tensor, *, last: bool = False) -> bool:
    """Whether these are colours: bytes or floats with an axis of three, which must be the last one."""
    if values.ndim not in (3, 4) or not (values.is_floating_point() or values.dtype == torch.uint8):
        return False
    return values.shape[-1] == 3 or (not last and values.shape[-3] == 3)


def _is_raw_negative(values: Tensor, palette: Tensor | None) -> bool:
    return not (palette is not None and _is_coloured(values)) and bool((values < 0).any())


def _nearest(rows: Tensor, palette: Tensor) -> Tensor:
    """Index of the nearest colour, (n, H, W).

    Raises:
        HintError: More than a twentieth of the pixels are of other colours.
    """
    distances = torch.stack([(rows - colour[:, None, None]).abs().amax(1) for colour in palette], dim=1)
    least, labels = distances.min(1)
    share = float((least > _FAR).float().mean())
    if share > 0.05:
        raise HintError(
            "y",
            found=f"{share:.0%} of the pixels in none of the palette's {len(palette)} colours",
            expected="a picture in these colours",
            fix="Give the palette that the map was drawn with.",
        )
    return labels


def _counted(rows: Tensor) -> Tensor:
    return torch.cat((rows, torch.ones_like(rows[:, :1])), dim=1)


def _is_read(y: Any) -> bool:
    rows = y[0] if isinstance(y, list) and y else y
    return isinstance(rows, Tensor) and rows.ndim == 4 and rows.shape[1] == 4
