"""How much faster is a run with one ControlNet than diffusers' own, and what does an idle one add?

CPU time of the process with one torch thread, which waiting for a core does not change; the pipelines take
turns in alternating order, and every figure is the median over the turns of a ratio within one turn, with
the smallest and the largest. Twenty steps with classifier-free guidance, text encoding included, no decoding.

    python benchmarks/bench_step_time.py --turns 9
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import diffusers
import torch
from pair import Case, Pair
from torch import Tensor

import controlkit as ck

STEPS = 20
CASES = (Case("full window"), Case("window [0, 0.5]", end=0.5), Case("scale 0", scale=0.0))
CHANGES = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 2}
"""Stable Diffusion 1.5's block structure, narrow."""


def seconds(run: Callable[[], Tensor]) -> float:
    """CPU time of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def turns(runs: dict[str, Callable[[], Tensor]], count: int) -> dict[str, list[float]]:
    """Times of each run over ``count`` turns, every second turn in reverse order; one more turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, count):
        for name in list(runs) if turn % 2 else list(reversed(runs)):
            spent = seconds(runs[name])
            if turn >= 0:
                times[name].append(spent)
    return times


def ratio(above: list[float], below: list[float]) -> str:
    """Median of the paired ratios, with the smallest and the largest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="how often each pipeline is timed")
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 128], help="sides of the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"controlkit {ck.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}, "
        f"{STEPS} steps, {options.turns} turns, load {load:.1f} on {os.cpu_count()} cores\n"
    )
    print("| pixels | case | diffusers / controlkit | controlkit / no control | diffusers / no control |")
    print("| --- | --- | --- | --- | --- |")
    for pixels in options.pixels:
        pair = Pair(pixels, CHANGES)
        for case in CASES:
            runs: dict[str, Callable[[], Tensor]] = {
                "plain": lambda pair=pair: pair.run_plain(STEPS),
                "ours": lambda pair=pair, case=case: pair.run_controlkit(STEPS, case),
                "theirs": lambda pair=pair, case=case: pair.run_diffusers(STEPS, case),
            }
            agree = pair.run_controlkit(2, case), pair.run_diffusers(2, case)
            torch.testing.assert_close(*agree, rtol=0, atol=1e-4 * float(agree[1].abs().max()))
            times = turns(runs, options.turns)
            cells = (
                ratio(times["theirs"], times["ours"]),
                ratio(times["ours"], times["plain"]),
                ratio(times["theirs"], times["plain"]),
            )
            print(f"| {pixels} | {case.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
