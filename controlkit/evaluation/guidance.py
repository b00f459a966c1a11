"""What does guidance by a class, a text or a label map do to the embedded model's pictures?

Every picture is made by the pipeline's own `__call__` without a prompt, so that all it shows of the target
comes from guidance. The judges (`judge.py`, `clip.py`) read finished pictures and never guided. At scale 0
nothing is attached.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from controlkit.embedded import STEPS
from controlkit.embedded.scenes import Scene, scene
from controlkit.embedded.world import COLOURS, KINDS
from controlkit.evaluation.adherence import commonest, segmentation_iou
from controlkit.evaluation.clip import JudgeClip
from controlkit.evaluation.judge import Judge
from controlkit.guidance import Likelihood, classifier, segmentation, text

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from controlkit.adapters.noisy_classifier import NoisyClassifier
    from controlkit.guidance.towers import NoisySegmenter, NoisyTowers

log = logging.getLogger(__name__)

CLASS_SCALES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
TEXT_SCALES = (0.0, 1.0, 2.0, 5.0, 10.0)
SEGMENTATION_SCALES = (0.0, 0.5, 1.0, 2.0, 5.0)
MAP_WEIGHT = 256.0
"""Measurements that a label map counts as: the places of the latents, whose labels are nearly independent."""
TEXT_CAPTIONS = 64
"""Captions among which a picture's own is looked for."""


@dataclass(frozen=True)
class Rung:
    """One scale of a ladder.

    Attributes:
        scale: Of the guidance.
        pictures: How many were made.
        score: Class: share whose judged kind is the wanted one. Text: share whose own caption is the nearest
            of all. Segmentation: mean intersection over union of the kinds.
        diversity: Class: mean cosine distance of two pictures of one class, by the judge's CLIP; else NaN.
        colour_entropy: Class: entropy of the judged colours of one class, in bits (at most 3); else NaN.
    """

    scale: float
    pictures: int
    score: float
    diversity: float = float("nan")
    colour_entropy: float = float("nan")


Ladder = dict[float, tuple[Rung, list[Image.Image]]]


def sample(
    pipe: StableDiffusionPipeline,
    seeds: Sequence[int],
    phi: Likelihood | None = None,
    y: Sequence[Any] | Tensor | None = None,
    *,
    steps: int = STEPS,
    batch: int = 32,
    **options: Any,
) -> list[Image.Image]:
    """One picture per seed of its noise, without a prompt, guided by `phi` and one target of `y` each."""
    import controlkit as ck

    host: Any = pipe
    made: list[Image.Image] = []
    for begin in range(0, len(seeds), batch):
        some = seeds[begin : begin + batch]
        arguments = {
            "num_inference_steps": steps,
            "guidance_scale": 1.0,
            "height": 128,
            "width": 128,
            "generator": [torch.Generator().manual_seed(seed) for seed in some],
        }
        if phi is None or options.get("scale") == 0.0:
            made += host([""] * len(some), **arguments).images
        else:
            assert y is not None
            control = ck.Guidance(phi, y[begin : begin + batch], **options)
            with ck.attach(pipe, control):
                made += host([""] * len(some), **arguments).images
    return made


def class_ladder(
    pipe: StableDiffusionPipeline,
    network: NoisyClassifier,
    judges: tuple[Judge, JudgeClip],
    *,
    count: int = 32,
    scales: Sequence[float] = CLASS_SCALES,
    first_seed: int = 0,
    **options: Any,
) -> Ladder:
    """All classes from the same `count` noises, class by class, over a ladder of scales.

    Args:
        pipe: The embedded base model.
        network: (x_t, t) to logits of `KINDS`.
        judges: Of kinds and colours, and of likeness.
        count: Pictures per class and scale.
        scales: The ladder.
        first_seed: Of the noises.
        options: Further ones for `controlkit.Guidance`.
    """
    seeds = [first_seed + i for i in range(count)] * len(KINDS)
    y = torch.arange(len(KINDS)).repeat_interleave(count)
    ladder: Ladder = {}
    for scale in scales:
        made = (
            sample(pipe, seeds, classifier(network), y, scale=scale, **options)
            if scale
            else sample(pipe, seeds[:count]) * len(KINDS)
        )
        reading = judges[0].read(made)
        right = [
            commonest(kinds) == label + 1 for kinds, label in zip(reading.kinds, y.tolist(), strict=True)
        ]
        vectors = judges[1].pictures(made)
        colours = [commonest(tones) for tones in reading.colours]
        groups = [slice(i * count, (i + 1) * count) for i in range(len(KINDS))]
        ladder[scale] = (
            Rung(
                scale,
                len(made),
                float(np.mean(right)),
                float(np.mean([_distance(vectors[group]) for group in groups])),
                float(np.mean([_entropy(colours[group]) for group in groups])),
            ),
            made,
        )
        log.info("class: %s", ladder[scale][0])
    return ladder


def text_ladder(
    pipe: StableDiffusionPipeline,
    towers: NoisyTowers,
    judge: JudgeClip,
    *,
    count: int = TEXT_CAPTIONS,
    scales: Sequence[float] = TEXT_SCALES,
    first_seed: int = 0,
    **options: Any,
) -> Ladder:
    """The first `count` different captions of held-out scenes, each with the noise of its scene's seed."""
    scenes = distinct_scenes(count, first_seed)
    captions = [s.caption for s in scenes]
    ladder: Ladder = {}
    for scale in scales:
        made = sample(pipe, [s.seed for s in scenes], text(towers), captions, scale=scale, **options)
        ladder[scale] = Rung(scale, len(made), judge.retrieval(made, captions)), made
        log.info("text: %s", ladder[scale][0])
    return ladder


def segmentation_ladder(
    pipe: StableDiffusionPipeline,
    segmenter: NoisySegmenter,
    judge: Judge,
    *,
    count: int = 64,
    scales: Sequence[float] = SEGMENTATION_SCALES,
    first_seed: int = 0,
    **options: Any,
) -> Ladder:
    """Exact label maps of held-out scenes, each with the noise of its scene's seed."""
    scenes = [scene(first_seed + i) for i in range(count)]
    maps = np.stack([s.labels[::2, ::2] for s in scenes])
    y = torch.from_numpy(maps).long()
    phi = segmentation(segmenter, weight=MAP_WEIGHT)
    ladder: Ladder = {}
    for scale in scales:
        made = sample(pipe, [s.seed for s in scenes], phi, y, scale=scale, **options)
        kinds = judge.read(made).kinds
        score = np.mean([segmentation_iou(found, wanted) for found, wanted in zip(kinds, maps, strict=True)])
        ladder[scale] = Rung(scale, len(made), float(score)), made
        log.info("segmentation: %s", ladder[scale][0])
    return ladder


def distinct_scenes(count: int, first_seed: int = 0) -> list[Scene]:
    """The first held-out scenes from a seed on whose captions all differ."""
    found: dict[str, Scene] = {}
    seed = first_seed
    while len(found) < count:
        candidate = scene(seed)
        found.setdefault(candidate.caption, candidate)
        seed += 1
    return list(found.values())


def _distance(vectors: Tensor) -> float:
    """Mean over pairs of one minus the cosine."""
    n = len(vectors)
    return float(1.0 - ((vectors @ vectors.mT).sum() - n) / (n * (n - 1)))


def _entropy(labels: Sequence[int]) -> float:
    """In bits."""
    shares = np.bincount(labels, minlength=len(COLOURS) + 1) / len(labels)
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
