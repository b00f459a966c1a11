"""Does a generated picture follow its caption and its controls? Scores with exact definitions."""

from controlkit.evaluation.adherence import (
    binding,
    commonest,
    depth_correlation,
    edge_f1,
    segmentation_iou,
)
from controlkit.evaluation.judge import Judge, Reading, load_judge

__all__ = [
    "Judge",
    "Reading",
    "binding",
    "commonest",
    "depth_correlation",
    "edge_f1",
    "load_judge",
    "segmentation_iou",
]
