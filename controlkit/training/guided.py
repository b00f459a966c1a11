"""Which ladders does the guidance section of docs/embedded.md have, and what is drawn of them?"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

import controlkit
from controlkit.embedded.guides import load_clip, load_segmentation
from controlkit.embedded.scenes import scene
from controlkit.evaluation import guidance
from controlkit.evaluation.clip import load_judge_clip
from controlkit.evaluation.judge import load_judge
from controlkit.evaluation.plot import trade_plot
from controlkit.training.measure import contact_sheet

WAYS = ("class", "text", "segmentation")


def measure_guidance(
    models: Path, *, ways: Sequence[str] = WAYS, count: int = 48, sheets: Path | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Measure guidance by class, text and label map with the models of a folder, on held-out scenes.

    Args:
        models: Holds `base`, the judges and the networks that guide.
        ways: Which of `WAYS`.
        count: Pictures per scale; for classes half as many per scale and class. Text always has 64.
        sheets: Where to save a contact sheet per ladder and the plot, if anywhere.

    Returns:
        The rungs of each ladder.
    """
    pipe = StableDiffusionPipeline.from_pretrained(models / "base", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    judge, likeness = load_judge(models / "judge"), load_judge_clip(models / "judge-clip")
    rungs = {}
    for way in ways:
        if way == "class":
            classifier: Any = controlkit.load(models / "classifier", dtype=torch.float32)
            ladder = guidance.class_ladder(pipe, classifier, (judge, likeness), count=count // 2)
        elif way == "text":
            ladder = guidance.text_ladder(pipe, load_clip(models / "clip"), likeness)
        else:
            segmenter = load_segmentation(models / "segmentation")
            ladder = guidance.segmentation_ladder(pipe, segmenter, judge, count=count)
        if sheets is not None:
            draw(way, ladder, sheets, count)
        # what does not apply to a way is NaN, which JSON has not
        found = [asdict(rung) for rung, _ in ladder.values()]
        rungs[way] = [{key: value for key, value in row.items() if value == value} for row in found]
    return rungs


def draw(way: str, ladder: guidance.Ladder, sheets: Path, count: int) -> None:
    """A sheet with a row per scale (for maps, the maps first); for classes the plot of the trade too."""
    columns = [i * (count // 2) + j for i in range(4) for j in range(2)] if way == "class" else range(8)
    rows = [[made[i] for i in columns] for _, made in ladder.values()]
    if way == "segmentation":
        rows.insert(0, [scene(i).seg for i in range(8)])
    contact_sheet(rows, sheets / f"guidance-{way}.png")
    if way != "class":
        return
    rungs = [rung for rung, _ in ladder.values()]
    plot = trade_plot(
        [(rung.score, rung.diversity) for rung in rungs],
        [f"{rung.scale:g}" for rung in rungs],
        x_name="share of pictures of the wanted class; at each point the scale",
        y_name="mean distance of two pictures of one class",
        y_top=1.2,
    )
    plot.save(sheets / "guidance-trade.png")
