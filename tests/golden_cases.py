"""What the original implementations compute on small random weights, for parity tests.

A case is ``FAMILY/NAME.json`` with safetensors beside it: weights ``w/KEY``, inputs ``in/NAME``, outputs
``out/NAME``. Small cases are kept in ``tests/golden``; the others are found in the folder that the
environment variable CONTROLKIT_GOLDEN names. Sources and meaning: ``tests/golden/README.md``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controlkit.checkpoints.safetensors import read_header, read_tensors

HERE = Path(__file__).parent / "golden"


def roots() -> list[Path]:
    """Where cases are looked for: the project's own first."""
    more = os.environ.get("CONTROLKIT_GOLDEN")
    return [HERE, *([Path(more)] if more else [])]


def names(family: str, beginning: str = "") -> list[str]:
    """All cases of a family that are there, as ``FAMILY/NAME``."""
    found = {
        f"{family}/{path.stem}"
        for root in roots()
        for path in (root / "cases" / family).glob(f"{beginning}*.json")
    }
    return sorted(found)


def manifests() -> dict[str, Path]:
    """The key lists of published checkpoints, by name."""
    return {path.stem: path for root in reversed(roots()) for path in (root / "manifests").glob("*.json")}


@dataclass(frozen=True)
class Case:
    """One case; every tensor has its own memory, and weights are float32."""

    name: str
    info: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def config(self) -> dict[str, Any]:
        return self.info["config"]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names begin so, with the prefix left in place."""
        return {name: tensor for name, tensor in self.weights.items() if name.startswith(prefix)}


def load_case(name: str) -> Case:
    """Read a case; where it refers to another's weights, these."""
    file = next(
        root / "cases" / f"{name}.json" for root in roots() if (root / "cases" / f"{name}.json").exists()
    )
    info = json.loads(file.read_text())
    tensors: dict[str, Tensor] = {}
    for part in info["files"]:
        with open(file.parent / part, "rb") as opened:
            header = read_header(opened, (file.parent / part).stat().st_size, part)
            tensors |= dict(read_tensors(opened, header, header.entries, part))
    groups: dict[str, dict[str, Tensor]] = {"w": {}, "in": {}, "out": {}}
    for key, tensor in tensors.items():
        group, _, rest = key.partition("/")
        groups[group][rest] = tensor
    weights = {
        key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in groups["w"].items()
    }
    if info.get("weights_from"):
        weights = load_case(info["weights_from"]).weights
    return Case(name, info, weights, groups["in"], groups["out"])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of the original's output."""
    assert ours.shape == theirs.shape, (tuple(ours.shape), tuple(theirs.shape))
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def assert_equal(ours: Tensor, theirs: Tensor, bound: float = 1e-5) -> None:
    """Assert `relative_error` within a bound: 1e-5, or 1e-4 for whole sampling loops."""
    error = relative_error(ours, theirs)
    assert error <= bound, f"off by {error:.2e} of the maximum, allowed are {bound:.0e}"
    assert torch.isfinite(ours).all()
