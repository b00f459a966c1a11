"""Which rows does the table of docs/embedded.md have, and how is each made?"""

import re
from pathlib import Path

import numpy as np
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from controlkit.embedded.scenes import Scene, scene
from controlkit.evaluation.judge import Judge, load_judge
from controlkit.training.measure import (
    Scores,
    contact_sheet,
    foreground_psnr,
    generate,
    log,
    reconstruct,
    score,
)


def measure_models(models: Path, *, count: int = 256, sheets: Path | None = None) -> dict[str, Scores]:
    """Measure the models of a folder on the held-out scenes 0 … count - 1.

    Args:
        models: Holds `base`, `judge` and, each if there, `controlnet-canny` and `t2i-depth`.
        count: Scenes.
        sheets: Where to save contact sheets of the first 16 scenes, if anywhere.

    Returns:
        Scores by row: real pictures (the judge's ceiling), the pictures through the autoencoder, another
        scene's picture (what chance gives), the base model without control, and each control.
    """
    scenes = [scene(seed) for seed in range(count)]
    real = [s.image for s in scenes]
    judge = load_judge(models / "judge")
    pipe = StableDiffusionPipeline.from_pretrained(models / "base", local_files_only=True)
    rebuilt = reconstruct(pipe, real)
    log.info("foreground PSNR of the autoencoder: %.2f dB", foreground_psnr(rebuilt, scenes))
    pictures = {
        "real pictures": real,
        "through the autoencoder": rebuilt,
        "another scene's picture": real[1:] + real[:1],
        "base, no control": generate(pipe, scenes),
    }
    maps = {"controlnet-canny": [s.canny for s in scenes], "t2i-depth": [s.depth for s in scenes]}
    if (models / "controlnet-canny").exists():
        canny = ControlNetModel.from_pretrained(models / "controlnet-canny")
        pictures["controlnet-canny"] = generate(pipe, scenes, control=canny, maps=maps["controlnet-canny"])
    if (models / "t2i-depth").exists():
        depth = T2IAdapter.from_pretrained(models / "t2i-depth")
        pictures["t2i-depth"] = generate(pipe, scenes, control=depth, maps=maps["t2i-depth"])
    if sheets is not None:
        for name, made in pictures.items():
            file = sheets / (re.sub(r"\W+", "-", name) + ".png")
            contact_sheet(_rows(scenes, maps.get(name), made), file)
    return {name: score(made, scenes, judge) for name, made in pictures.items()} | _one_object(pipe, judge)


def _one_object(pipe: StableDiffusionPipeline, judge: Judge, count: int = 200) -> dict[str, Scores]:
    """Captions of one solid only: is it the right kind and colour?"""
    scenes: list[Scene] = []
    seed = 100_000
    while len(scenes) < count:
        candidate = scene(seed)
        if len(candidate.kinds) == 1:
            scenes.append(candidate)
        seed += 1
    return {"base, one solid": score(generate(pipe, scenes), scenes, judge)}


def _rows(
    scenes: list[Scene], maps: list[Image.Image] | None, made: list[Image.Image]
) -> list[list[Image.Image]]:
    rows = []
    for begin in range(0, min(16, len(scenes)), 8):
        part = np.s_[begin : begin + 8]
        rows.append([s.image for s in scenes[part]])
        if maps is not None:
            rows.append(maps[part])
        rows.append(made[part])
    return rows
