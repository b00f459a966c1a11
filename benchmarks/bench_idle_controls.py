"""What does a control that is off still cost? How often its network and its hint encoder run.

Forward hooks count the calls, over 10 steps with classifier-free guidance. "2 x 1" is two calls on a batch of
one row; a hint encoder called with two rows encodes the same map twice. `README.md` has the other toolkits.

    python benchmarks/bench_idle_controls.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from pair import Case, Pair
from torch import Tensor

import controlkit as ck

STEPS = 10
CASES = (Case("window [0, 0.2]", end=0.2), Case("scale 0", scale=0.0), Case("full window"))


def count(modules: tuple[Any, ...], run: Callable[[], Tensor]) -> list[str]:
    """Calls of each module while ``run`` runs, as "calls x rows"; every module takes its rows first."""
    rows: list[list[int]] = [[] for _ in modules]

    def counter(seen: list[int]) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(len(args[0] if args else next(iter(kwargs.values()))))

        return hook

    handles = [
        module.register_forward_pre_hook(counter(seen), with_kwargs=True)
        for module, seen in zip(modules, rows, strict=True)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [f"{len(seen)} x {'/'.join(map(str, sorted(set(seen))))}" if seen else "0" for seen in rows]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    pair = Pair(pixels=64)
    toolkits: dict[str, tuple[Any, Callable[[Case], Tensor]]] = {
        f"controlkit {ck.__version__}": (pair.net, lambda case: pair.run_controlkit(STEPS, case)),
        f"diffusers {diffusers.__version__}": (pair.twin, lambda case: pair.run_diffusers(STEPS, case)),
    }
    print(f"{STEPS} steps, guidance on; torch {torch.__version__}\n")
    print("| toolkit |" + "".join(f" {case.name}: net | hint |" for case in CASES))
    print("| --- |" + " --- | --- |" * len(CASES))
    for name, (net, run) in toolkits.items():
        modules = (net, net.controlnet_cond_embedding)
        cells = [cell for case in CASES for cell in count(modules, lambda case=case, run=run: run(case))]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
