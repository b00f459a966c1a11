"""How good are the embedded models? The figures of docs/embedded.md, on held-out scenes.

Every row uses the same scenes (seeds 0, 1, …), the same starting noise (the scene's seed) and the same
sampler; nothing is selected. Controls run through diffusers' own pipelines.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_adapter import StableDiffusionAdapterPipeline
from PIL import Image

from controlkit.embedded import GUIDANCE_SCALE, STEPS
from controlkit.embedded.scenes import Scene
from controlkit.embedded.world import COLOURS, KINDS
from controlkit.evaluation.adherence import (
    binding,
    commonest,
    depth_correlation,
    edge_f1,
    segmentation_iou,
)
from controlkit.evaluation.judge import Judge

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Means over scenes; see `controlkit.evaluation.adherence` for each.

    Attributes:
        edge_f1: Against the exact edge map.
        depth: Depth correlation in the foreground band.
        iou: Mean intersection over union of the kinds.
        foreground: Intersection over union of everything that is not floor.
        kind: Share of the scenes with one solid whose kind is the judged one.
        colour: The same for its colour.
        binding: Share of the solids that have their colour at their place.
    """

    edge_f1: float
    depth: float
    iou: float
    foreground: float
    kind: float
    colour: float
    binding: float

    def row(self) -> str:
        return " | ".join(f"{value:.3f}" for value in asdict(self).values())


def score(images: list[Image.Image], scenes: list[Scene], judge: Judge) -> Scores:
    """Compare pictures with the scenes whose captions or maps they were made from."""
    reading = judge.read(images)
    colours = list(COLOURS)
    edges, depths, ious, foregrounds, kinds, tones, bound = [], [], [], [], [], [], []
    for i, (image, scene) in enumerate(zip(images, scenes, strict=True)):
        labels, instances = scene.labels[::2, ::2], scene.instances[::2, ::2]
        exact = np.asarray(scene.depth)[..., 0].reshape(64, 2, 64, 2).mean((1, 3))
        seen, wanted = reading.kinds[i] > 0, labels > 0
        tone = [colours.index(name) + 1 for name in scene.colours]
        edges.append(edge_f1(image, scene.canny))
        depths.append(depth_correlation(reading.depth[i], exact, wanted))
        ious.append(segmentation_iou(reading.kinds[i], labels))
        foregrounds.append((seen & wanted).sum() / (seen | wanted).sum())
        bound.append(binding(reading.colours[i], instances, tone))
        if len(scene.kinds) == 1:
            kinds.append(commonest(reading.kinds[i]) == KINDS.index(scene.kinds[0]) + 1)
            tones.append(commonest(reading.colours[i]) == tone[0])
    means = [edges, depths, ious, foregrounds, kinds, tones, bound]
    return Scores(*(float(np.mean(values)) if values else float("nan") for values in means))


def generate(
    pipe: StableDiffusionPipeline,
    scenes: list[Scene],
    *,
    control: ControlNetModel | T2IAdapter | None = None,
    maps: list[Image.Image] | None = None,
    scale: float = 1.0,
    guidance_scale: float = GUIDANCE_SCALE,
    steps: int = STEPS,
    batch: int = 32,
) -> list[Image.Image]:
    """One picture per scene, from its caption and map; the noise is that of the scene's seed."""
    host: Any = pipe
    options: dict[str, Any] = {}
    if isinstance(control, ControlNetModel):
        host = StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=control, requires_safety_checker=False
        )
        options["controlnet_conditioning_scale"] = scale
    elif control is not None:
        parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
        host = StableDiffusionAdapterPipeline(**parts, adapter=control, requires_safety_checker=False)
        options["adapter_conditioning_scale"] = scale
    host.set_progress_bar_config(disable=True)
    images = []
    for begin in range(0, len(scenes), batch):
        some = scenes[begin : begin + batch]
        if maps is not None:
            options["image"] = maps[begin : begin + batch]
        images += host(
            [scene.caption for scene in some],
            height=128,
            width=128,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(scene.seed) for scene in some],
            **options,
        ).images
        log.info("%d of %d pictures", len(images), len(scenes))
    return images


@torch.no_grad()
def reconstruct(pipe: StableDiffusionPipeline, images: list[Image.Image]) -> list[Image.Image]:
    """Through the autoencoder and back, by the mean of its posterior."""
    out: list[Image.Image] = []
    for begin in range(0, len(images), 32):
        x = pipe.image_processor.preprocess(images[begin : begin + 32])  # pyright: ignore[reportArgumentType]
        latents = pipe.vae.encode(x, return_dict=False)[0].mean
        rebuilt: Any = pipe.image_processor.postprocess(pipe.vae.decode(latents, return_dict=False)[0])
        out += rebuilt
    return out


def foreground_psnr(images: list[Image.Image], scenes: list[Scene]) -> float:
    """Mean over pictures of the peak signal-to-noise ratio on the solids, in dB."""
    values = []
    for image, scene in zip(images, scenes, strict=True):
        error = np.asarray(image, np.float64) - np.asarray(scene.image, np.float64)
        values.append(10.0 * np.log10(255.0**2 / np.square(error[scene.instances > 0]).mean()))
    return float(np.mean(values))


def contact_sheet(rows: list[list[Image.Image]], target: Path) -> None:
    """Save pictures of one size side by side."""
    sheet = np.concatenate([np.concatenate([np.asarray(p.convert("RGB")) for p in row], 1) for row in rows])
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(target)
