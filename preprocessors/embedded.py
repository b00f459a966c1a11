"""What the embedded world's own small network reads from a picture: depth and kinds of solids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from controlkit.preprocessors.base import Detector, Pixels

if TYPE_CHECKING:
    from torch import Tensor

    from controlkit.evaluation.judge import JudgeNet, Logits

_LARGEST = 512
"""Largest side, in pixels, to which answers are interpolated before labels are chosen."""


@dataclass(frozen=True)
class EmbeddedDepth(Detector):
    """Depth of a picture of the embedded world, for the embedded ``t2i-depth``.

    Made for pictures such as those of `controlkit.embedded.scene` and `controlkit.embedded.pipeline`; on
    photographs it means nothing. The picture is shrunk to 128 x 128, the answer comes at 64 x 64 and is
    interpolated to the picture's size. Its scale is `Scene.depth`'s: 255 is 4.5 world units from the camera.

    Source:
        The network of `controlkit.evaluation.judge`, whose weights are in the package.
    """

    name = "embedded-depth"
    family = "depth"
    meaning = "inverse depth of the embedded world, near is bright"

    def detect(self, photo: Pixels) -> Pixels:
        depth = _resized(_read(photo).depth[:, None], photo.shape[0], photo.shape[1])[0, 0]
        return (depth.clamp(0, 1) * 255).round().byte().numpy()


@dataclass(frozen=True)
class EmbeddedSegmentation(Detector):
    """Kinds of solids in a picture of the embedded world, in the colours of `controlkit.embedded.PALETTE`.

    Made for pictures such as those of `controlkit.embedded.scene`; on photographs it means nothing. The
    picture is shrunk to 128 x 128, the answer comes at 64 x 64; its logits are interpolated to the
    picture's size, at most 512 pixels, before the likeliest label is taken.

    Source:
        The network of `controlkit.evaluation.judge`, whose weights are in the package.
    """

    name = "embedded-segmentation"
    family = "seg"
    meaning = "kinds of solids of the embedded world, in colours of its palette"

    def detect(self, photo: Pixels) -> Pixels:
        from controlkit.embedded.scenes import PALETTE

        height, width = photo.shape[:2]
        logits = _resized(_read(photo).kind, min(height, _LARGEST), min(width, _LARGEST))
        labels = logits.argmax(dim=1)[0].numpy()
        rows = np.arange(height) * labels.shape[0] // height
        columns = np.arange(width) * labels.shape[1] // width
        return np.asarray(PALETTE, np.uint8)[labels[rows[:, None], columns]]


def _read(photo: Pixels) -> Logits:
    import torch
    from PIL import Image

    small = np.array(Image.fromarray(photo).resize((128, 128), Image.Resampling.LANCZOS))
    pixels = torch.from_numpy(small).permute(2, 0, 1)[None].float().contiguous() / 255
    with torch.no_grad():
        return _network()(pixels)


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    from torch.nn.functional import interpolate

    return interpolate(values, (height, width), mode="bilinear", align_corners=False)


@cache
def _network() -> JudgeNet:
    from controlkit.evaluation.judge import load_judge

    return load_judge().net
