"""Lines of everything: the edges of a network together with dark strokes, as MistoLine reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from controlkit.preprocessors.auxiliary import Auxiliary, auxiliary
from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.opencv import gaussian, opencv
from controlkit.preprocessors.statefiles import filled

if TYPE_CHECKING:
    from pathlib import Path

_SPECK = 12
"""Pixels. controlnet-aux drops fewer than 36 voxels of three equal channels."""


@dataclass(frozen=True)
class AnyLine(Auxiliary):
    """Outlines, strokes and lettering at once, for MistoLine and other ``lineart`` models.

    Two layers: edges by TEED with weights of its own, and strokes where the picture is darker than around.
    Best at 1280 pixels (``resolution=1280``), for which it was made. Where the layers meet, sums run over the
    end of the scale, as in the published code that MistoLine's maps were made with.

    Source:
        TheMistoAI (2024), ComfyUI-Anyline; the network of Soria et al. (2023), "Tiny and efficient model for
        the edge detection generalization", ICCV workshops; controlnet-aux ``AnylineDetector``.
    """

    name = "anyline"
    family = "lineart"
    meaning = "outlines and dark strokes, white on black"
    marks = True
    files = ("Anyline/MTEED.pth",)

    weights: str = option(
        "TheMistoAI/MistoLine", meaning="where its weights are: a hub id, a folder, or a file"
    )
    sigma: float = option(
        2.0, low=0.3, high=40, unit="pixels", meaning="size of the surroundings of a stroke"
    )
    threshold: float = option(
        3.0,
        low=0,
        high=254,
        unit="levels of 255",
        meaning="differences up to this do not count when the typical stroke is sought",
    )

    def assemble(self, paths: tuple[Path, ...]) -> Any:
        module = auxiliary("teed")
        return module.TEEDdetector(filled(module.TED(), paths[0], self.name))

    def run(self, detector: Any, photo: Pixels, side: int) -> Pixels:
        edges = detector(photo, detect_resolution=side, safe_steps=2, output_type="np")
        strokes = self._strokes(photo)[..., None]
        joined = 1 - (1 - strokes) * (1 - edges)  # uint8 throughout, with its overflow
        return np.where(strokes > 0, joined, edges)

    def _strokes(self, photo: Pixels) -> NDArray[np.uint8]:
        """(H, W): how much darker than around, a typical stroke at 127; specks left out."""
        cv2 = opencv()
        values = photo.astype(np.float32)
        darker = (gaussian(values, self.sigma) - values).min(axis=2).clip(0, 255)
        strokes = darker[darker > self.threshold]
        typical = max(16, np.median(strokes)) if strokes.size else 16
        shown = (darker / typical * 127).clip(0, 255).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats((shown > 0).astype(np.uint8), connectivity=4)
        large = stats[:, cv2.CC_STAT_AREA] >= _SPECK
        large[0] = False
        return shown * large[labels]
