"""What does guidance add to a step?

One call of a U-Net of Stable Diffusion 1.5's size (random weights), on both halves of classifier-free
guidance, with each way to guide it. CPU time of the process with one torch thread, which waiting for a core
does not change; the ways take turns in alternating order after one turn that warms up, and every figure is
the median over the turns of a ratio within one turn, with the smallest and the largest. The classifier is
guided-diffusion's for 64x64, with four channels, on latents of 512x512 pixels.

    python benchmarks/bench_guidance.py --turns 3
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import median
from typing import Any

import diffusers
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.noisy_classifier import ClassifierConfig, NoisyClassifier

CLASSIFIER = ClassifierConfig(
    in_channels=4,
    model_channels=128,
    num_res_blocks=4,
    attention_resolutions=(2, 4, 8),
    num_head_channels=64,
    use_scale_shift_norm=True,
    resblock_updown=True,
    image_size=64,
    pool="attention",
)
DECODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def nearness(x: Tensor, y: Any, t: Tensor) -> Tensor:
    """A function that costs nothing, so that what remains is the way to it."""
    return -(x**2).flatten(1).mean(1)


def ways(classifier: NoisyClassifier) -> dict[str, ck.Guidance | None]:
    """Each way to guide a step, by its name."""
    return {
        "no guidance": None,
        "classifier on x_t": classifier.on(3),
        "the same, 2 inner steps": ck.Guidance(classifier.on(3).phi, 3, inner_steps=2),
        "clean latents, noise held fixed": ck.Guidance(nearness, sees="clean"),
        "clean latents, through the U-Net": ck.Guidance(nearness, sees="clean", through_unet=True),
        "the same, checkpointed": ck.Guidance(nearness, sees="clean", through_unet=True, checkpointing=True),
        "decoded picture, noise held fixed": ck.Guidance(nearness, sees="image"),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="how often each way is timed")
    parser.add_argument("--ways", type=int, default=7, help="how many of the ways, from the first on")
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = options.pixels // 8
    unet: Any = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=side).eval()
    vae: Any = diffusers.AutoencoderKL(**DECODER).eval()
    classifier = NoisyClassifier(replace(CLASSIFIER, image_size=side)).eval()
    for network in (unet, vae, classifier):
        network.requires_grad_(False)
    scheduler: Any = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(20)
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=scheduler,
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
    )  # fmt: skip
    prompt = torch.randn(1, 77, 768)

    def run(control: Any) -> float:
        start = time.process_time()
        with ck.attach(pipe, *([] if control is None else [control])):
            pipe(
                prompt_embeds=prompt,
                negative_prompt_embeds=torch.zeros_like(prompt),
                height=options.pixels,
                width=options.pixels,
                num_inference_steps=1,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            )
        return time.process_time() - start

    pipe.set_progress_bar_config(disable=True)
    cases = dict(list(ways(classifier).items())[: options.ways])
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(-1, options.turns):
        for name in list(cases) if turn % 2 else list(reversed(cases)):
            spent = run(cases[name])
            if turn >= 0:
                times[name].append(spent)
    count = sum(parameter.numel() for parameter in classifier.parameters()) / 1e6
    print(
        f"controlkit {ck.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__},"
        f" {options.pixels} pixels, {options.turns} turns,"
        f" classifier of {count:.1f} M\n"
    )
    print("| way | step / step without guidance | seconds |\n| --- | --- | --- |")
    plain = times["no guidance"]
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(spent, plain, strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {spread} | {median(spent):.1f} |", flush=True)


if __name__ == "__main__":
    main()
