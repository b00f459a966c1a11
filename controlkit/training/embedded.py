"""Train, export and measure the embedded models: `python -m controlkit.training.embedded <stage>`.

The stages, in order: render, autoencoder, judge, encode, denoiser, control (once per kind), export,
evaluate; for guidance then guide (once per kind, `judge-clip` too), export-guides, evaluate-guidance.
Every stage reads and writes one work folder; interrupted training of the base and the controls goes on
where it stopped. `begin` takes the place of autoencoder and judge where exported models are trained
further. `evaluate` and `evaluate-guidance` need none of the others: they measure the models that ship.
"""

import argparse
import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from controlkit.training.data import PART, Scenes, load_scenes, render_part

log = logging.getLogger(__name__)

MODELS = Path(__file__).parents[1] / "embedded" / "models"


def render_stage(work: Path, args: argparse.Namespace) -> None:
    with ProcessPoolExecutor(args.workers) as pool:
        parts = range(-(-args.scenes // PART))
        list(pool.map(render_part, [work / "scenes"] * len(parts), parts))


def autoencoder_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.training.autoencoder import train_autoencoder

    scenes, target = load_scenes(work / "scenes"), work / "autoencoder.pt"
    # first the pictures, with next to no cost on the latents; then latents that a denoiser can learn
    train_autoencoder(scenes, target, seconds=0.8 * args.seconds, lr=2e-3, kl_weight=2e-4, whole=0.0)
    train_autoencoder(scenes, target, seconds=0.2 * args.seconds, lr=1.2e-3, kl_weight=4e-3, whole=0.35)


def judge_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.training.judge import train_judge

    train_judge(load_scenes(work / "scenes"), work / "judge.pt", seconds=args.seconds)


def encode_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.training.autoencoder import encode_part, new_autoencoder, normalise

    if not (work / "autoencoder-normalised.pt").exists():
        model, scenes = new_autoencoder(), load_scenes(work / "scenes")
        model.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True))
        normalise(model, torch.from_numpy(encode_part(model, scenes.image[0][:1000])).float())
        torch.save(model.state_dict(), work / "autoencoder-normalised.pt")
    (work / "latents").mkdir(exist_ok=True)
    with ProcessPoolExecutor(args.workers) as pool:
        parts = range(-(-args.scenes // PART))
        list(pool.map(_encode, [work] * len(parts), parts))


def _encode(work: Path, part: int) -> None:
    from controlkit.training.autoencoder import encode_part, new_autoencoder

    torch.set_num_threads(1)
    model, scenes = new_autoencoder(), load_scenes(work / "scenes")
    model.load_state_dict(torch.load(work / "autoencoder-normalised.pt", weights_only=True))
    np.save(work / "latents" / f"{part:03d}.npy", encode_part(model, scenes.image[part]))


def begin_stage(work: Path, args: argparse.Namespace) -> None:
    """Take autoencoder, judge and controls of `--models` as the beginning, for a world that changed."""
    from controlkit.evaluation.judge import load_judge
    from controlkit.training.controls import KINDS
    from controlkit.training.export import load_exported

    work.mkdir(parents=True, exist_ok=True)
    torch.save(load_exported(args.models / "base" / "vae").state_dict(), work / "autoencoder-normalised.pt")
    torch.save(load_judge(args.models / "judge").net.state_dict(), work / "judge.pt")
    for kind in KINDS:
        torch.save(load_exported(args.models / kind).state_dict(), work / f"{kind}.pt")


def _cached(work: Path) -> tuple[Scenes, torch.Tensor, torch.Tensor]:
    from controlkit.training.denoiser import token_table

    parts = sorted((work / "latents").glob("*.npy"))
    scenes = load_scenes(work / "scenes", len(parts))
    latents = torch.from_numpy(np.concatenate([np.load(part) for part in parts]))
    return scenes, latents, token_table(scenes.captions[0])


def denoiser_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.training.denoiser import Plan, place_weights, train_denoiser

    scenes, latents, tokens = _cached(work)
    plan = Plan(args.seconds, args.lr, args.batch, args.decay, args.workers, args.start)
    train_denoiser(latents, tokens, place_weights(scenes.instances), work / "denoiser.pt", plan)


def control_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.training.controls import train_control
    from controlkit.training.denoiser import load_denoiser

    train_control(
        args.kind,
        load_denoiser(work / "denoiser.pt"),
        *_cached(work),
        work / f"{args.kind}.pt",
        seconds=args.seconds,
        lr=args.lr,
        batch=args.batch,
    )


def guide_stage(work: Path, args: argparse.Namespace) -> None:
    if args.kind == "judge-clip":
        from controlkit.training.judge_clip import train_judge_clip

        train_judge_clip(
            load_scenes(work / "scenes"), (args.out or work) / "judge-clip.pt", seconds=args.seconds
        )
        return
    from controlkit.training.guides import train_guide

    scenes, latents, tokens = _cached(work)
    train_guide(
        args.kind,
        scenes,
        latents,
        tokens,
        (args.out or work) / f"{args.kind}.pt",
        seconds=args.seconds,
        base=args.models / "base",
        lr=args.lr,
        batch=args.batch,
    )


def export_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.evaluation.judge import JudgeNet
    from controlkit.training import export
    from controlkit.training.autoencoder import new_autoencoder
    from controlkit.training.controls import KINDS, new_control
    from controlkit.training.denoiser import load_denoiser

    unet, text = load_denoiser(work / "denoiser.pt")
    for kind in KINDS:
        if (work / f"{kind}.pt").exists():
            control = new_control(kind, unet)
            control.load_state_dict(torch.load(work / f"{kind}.pt", weights_only=True))
            export.export_control(args.models / kind, control)
    autoencoder = new_autoencoder()
    autoencoder.load_state_dict(torch.load(work / "autoencoder-normalised.pt", weights_only=True))
    export.export_base(args.models / "base", autoencoder, unet, text)
    judge = JudgeNet()
    judge.load_state_dict(torch.load(work / "judge.pt", weights_only=True))
    export.export_judge(args.models / "judge", judge)


def export_guides_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.evaluation.clip import JudgeClipNet
    from controlkit.training.export import export_judge
    from controlkit.training.guides import GUIDES, export_guide, load_guide

    for kind in GUIDES:
        if (work / f"{kind}.pt").exists():
            export_guide(kind, load_guide(kind, work / f"{kind}.pt"), args.models / kind)
    if (work / "judge-clip.pt").exists():
        net = JudgeClipNet()
        net.load_state_dict(torch.load(work / "judge-clip.pt", weights_only=True))
        export_judge(args.models / "judge-clip", net)


def evaluate_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.training.table import measure_models

    begin = time.monotonic()
    table = measure_models(args.models, count=args.scenes, sheets=args.sheets)
    for name, scores in table.items():
        log.info("%-28s %s", name, scores.row())
    log.info("measured %d scenes in %.0f s", args.scenes, time.monotonic() - begin)
    if args.json:
        args.json.write_text(
            json.dumps({name: asdict(scores) for name, scores in table.items()}, indent=1) + "\n"
        )


def evaluate_guidance_stage(work: Path, args: argparse.Namespace) -> None:
    from controlkit.training.guided import WAYS, measure_guidance

    begin = time.monotonic()
    ways = [args.kind] if args.kind in WAYS else WAYS
    ladders = measure_guidance(args.models, ways=ways, count=args.count, sheets=args.sheets)
    log.info("measured guidance in %.0f s", time.monotonic() - begin)
    if args.json:
        args.json.write_text(json.dumps(ladders, indent=1) + "\n")


STAGES = {
    "begin": begin_stage,
    "render": render_stage,
    "autoencoder": autoencoder_stage,
    "judge": judge_stage,
    "encode": encode_stage,
    "denoiser": denoiser_stage,
    "control": control_stage,
    "guide": guide_stage,
    "export": export_stage,
    "export-guides": export_guides_stage,
    "evaluate": evaluate_stage,
    "evaluate-guidance": evaluate_guidance_stage,
}


def main(argv: list[str] | None = None) -> None:
    """Run one stage; see the module's words."""
    parser = argparse.ArgumentParser(prog="python -m controlkit.training.embedded", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path(".train"), help="folder of data and checkpoints")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the shipped models")
    parser.add_argument("--seconds", type=float, default=600.0, help="training budget")
    parser.add_argument("--scenes", type=int, default=256, help="how many to render, encode or measure")
    parser.add_argument(
        "--kind",
        default="controlnet-canny",
        help="which control or guide to train; which way of guidance to evaluate",
    )
    parser.add_argument(
        "--lr", type=float, default=2e-3, help="denoiser, control, guide: highest learning rate"
    )
    parser.add_argument("--batch", type=int, default=24, help="denoiser, control, guide: samples per worker")
    parser.add_argument("--decay", type=float, default=0.5, help="denoiser: share over which the rate falls")
    parser.add_argument("--workers", type=int, default=2, help="processes for render, encode and denoiser")
    parser.add_argument("--start", type=Path, help="denoiser: begin with this exported base model")
    parser.add_argument("--threads", type=int, default=1, help="threads of every other stage")
    parser.add_argument("--out", type=Path, help="guide: folder of the checkpoint, by default --work")
    parser.add_argument("--count", type=int, default=48, help="evaluate-guidance: pictures per scale")
    parser.add_argument("--sheets", type=Path, help="evaluate, evaluate-guidance: folder for contact sheets")
    parser.add_argument("--json", type=Path, help="evaluate, evaluate-guidance: file for the figures")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    STAGES[args.stage](args.work, args)


if __name__ == "__main__":
    main()
