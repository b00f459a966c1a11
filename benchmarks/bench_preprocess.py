"""How much faster is a folder of photographs than controlnet-aux's own loop?

The same detector on the same weights (random: what is measured is how photographs get through, not what is
found), on photographs of scikit-image, 512 pixels at the shortest side, read from JPEG and written as PNG.
controlnet-aux: its detector object, loaded before the clock starts, in the loop that its page shows: open,
detect, save. controlkit: one call of ``preprocess_files``, its processes, imports and loading included. Wall
time, as it is a matter of using all cores; both take turns in alternating order, and every figure is the
median over the turns of a ratio within one turn, with the smallest and the largest.

    python benchmarks/bench_preprocess.py --photos 200 --turns 3
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from skimage import data

from controlkit.batch import preprocess_files

warnings.simplefilter("ignore")
PHOTOS = ("astronaut", "cat", "chelsea", "coffee", "rocket")
SIDE = 512


@dataclass(frozen=True)
class Case:
    """One detector under both toolkits.

    Args:
        name: Ours.
        theirs: Makes controlnet-aux's, from the folder of weights.
        weights: Makes the content of the weight file, and its name.
        call: What theirs is called with.
        options: Of ours.
    """

    name: str
    theirs: Callable[[Path], Any]
    weights: tuple[str, Callable[[], Any]] | None = None
    call: dict[str, Any] | None = None
    options: dict[str, Any] | None = None


def cases() -> list[Case]:
    """Detectors that both have."""
    import controlnet_aux as aux
    from controlnet_aux.hed import ControlNetHED_Apache2
    from controlnet_aux.pidi.model import pidinet
    from controlnet_aux.teed.ted import TED

    return [
        Case("canny", lambda _: aux.CannyDetector(), call={"low_threshold": 100, "high_threshold": 200}),
        Case("shuffle", lambda _: aux.ContentShuffleDetector()),
        Case("lineart", lambda _: aux.LineartStandardDetector()),
        Case(
            "hed",
            lambda folder: aux.HEDdetector.from_pretrained(str(folder)),
            ("ControlNetHED.pth", lambda: ControlNetHED_Apache2().state_dict()),
        ),
        Case(
            "pidinet",
            lambda folder: aux.PidiNetDetector.from_pretrained(str(folder)),
            ("table5_pidinet.pth", lambda: {"state_dict": pidinet().state_dict()}),
        ),
        Case(
            "teed",
            lambda folder: aux.TEEDdetector.from_pretrained(str(folder), filename="5_model.pth"),
            ("5_model.pth", lambda: TED().state_dict()),
        ),
    ]


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files, cut anew from few photographs."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    files = []
    for i in range(count):
        photo = Image.fromarray(getattr(data, PHOTOS[i % len(PHOTOS)])()).convert("RGB")
        size = (SIDE, int(draw.integers(SIDE, SIDE * 3 // 2)) // 64 * 64)
        photo = ImageOps.fit(photo, size, Image.Resampling.LANCZOS, centering=tuple(draw.random(2)))
        files.append(folder / f"{i:04d}.jpg")
        photo.save(files[-1], quality=92)
    return files


def their_loop(detector: Any, files: list[Path], out: Path, call: dict[str, Any]) -> float:
    """Seconds of controlnet-aux's loop."""
    out.mkdir()
    start = time.perf_counter()
    for file in files:
        found = detector(Image.open(file), detect_resolution=SIDE, **call)
        found.save(out / f"{file.stem}.png")
    return time.perf_counter() - start


def our_call(case: Case, folder: Path, out: Path, options: dict[str, Any], workers: int | None) -> float:
    """Seconds of ours."""
    start = time.perf_counter()
    report = preprocess_files(folder, {case.name: options}, out, workers=workers)
    seconds = time.perf_counter() - start
    if report.failed:
        raise SystemExit(str(report.failed[0]))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes; default: what preprocess_files chooses")
    parser.add_argument("--only", nargs="*", help="names of detectors")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.photos} photographs")
    print("| detector | controlnet-aux, photographs/s | controlkit, photographs/s | ratio |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        files = photographs(root / "photos", given.photos)
        for case in cases():
            if given.only and case.name not in given.only:
                continue
            torch.manual_seed(0)
            options = dict(case.options or {})
            if case.weights:
                torch.save(case.weights[1](), root / case.weights[0])
                options["weights"] = str(root / case.weights[0])
            theirs = case.theirs(root)
            pairs = []
            for turn in range(given.turns):
                parts: dict[str, float] = {}
                for way in ("aux", "ours")[:: 1 if turn % 2 else -1]:
                    out = root / f"{case.name}-{way}-{turn}"
                    if way == "aux":
                        parts[way] = their_loop(theirs, files, out, case.call or {})
                    else:
                        parts[way] = our_call(case, root / "photos", out, options, given.workers)
                pairs.append(parts)
            ratios = [parts["aux"] / parts["ours"] for parts in pairs]
            speed = {way: given.photos / median(parts[way] for parts in pairs) for way in ("aux", "ours")}
            print(
                f"| {case.name} | {speed['aux']:.1f} | {speed['ours']:.1f} "
                f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
