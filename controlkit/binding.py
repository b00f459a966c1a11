"""What every ``module.on(image, ...)`` does with its image, its mask and its strength.

Leaves the network's own part (what it computes, and when) to the ``control.py`` of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from controlkit.contracts import RunInfo, Step
from controlkit.errors import BatchMismatch, DeviceMismatch, ParameterError
from controlkit.images import as_map, as_mask, fit
from controlkit.images.hidden import KEYWORD, MEMORY
from controlkit.maps import notice
from controlkit.module import ControlModule
from controlkit.strength import Mode, Scale, Strength

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class BoundMap:
    """A control map as its user gave it, read and checked, not yet resized.

    Args:
        rows: (n, channels, H, W) in [0, 1], or a list of such with sizes of their own.
        resize: How it is brought to the size a run needs.
        notes: What was done to read it.
    """

    rows: Tensor | list[Tensor]
    resize: Literal["stretch", "crop", "pad"]
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of maps."""
        return len(self.rows)

    def fitted(self, name: str, run: RunInfo, size: tuple[int, int]) -> tuple[Tensor, tuple[str, ...]]:
        """The maps at (height, width) in pixels, and what to say about it.

        Raises:
            BatchMismatch: Neither one map, nor one per prompt or picture of this run.
        """
        if run.images % self.count:
            raise BatchMismatch(
                f"{name}: image",
                found=f"{self.count} maps for {run.images} pictures",
                expected=f"one map, or a number that divides {run.images}: one per prompt or per picture",
                fix="Give one map for all, or a list with one entry per prompt.",
                code="CK-H20",
            )
        maps, note = fit(self.rows, size, resize=self.resize)
        return maps, self.notes if note is None else (*self.notes, note)


def read_map(
    image: Any,
    *,
    channels: int,
    detect: str | None,
    detect_options: Mapping[str, Any] | None,
    resize: Literal["stretch", "crop", "pad"],
    channel_order: Literal["rgb", "bgr"] | None,
    condition: str | None = None,
    base: str = "other",
) -> BoundMap:
    """Read the image of ``module.on``, detecting the map first where a detector is named.

    The detector's option ``resolution="auto"`` stands for what modules for ``base`` were trained on.

    Where the condition is known, a map that cannot be right is told (`controlkit.maps.notice`).

    Raises:
        HintError: The image cannot be used.
        ParameterError: An option out of its range, or options without a detector.
    """
    if resize not in ("stretch", "crop", "pad"):
        raise ParameterError("resize", found=repr(resize), expected="'stretch', 'crop' or 'pad'")
    notes: list[str] = []
    if detect is not None:
        from controlkit.preprocessors import TRAINED, preprocess

        options = dict(detect_options or {})
        if options.get("resolution") == "auto":
            options["resolution"] = TRAINED.get(base, "auto")
        image = cast(Any, preprocess(image, detect, **options))
        notes.append(f"map detected by {detect}")
    elif detect_options:
        raise ParameterError(
            "detect_options",
            found="options without a detector",
            expected="detect=...",
            fix="Name the detector.",
        )
    image = _with_hidden(image)
    lowest = 0.0
    if _marks_hidden(image):
        lowest = -1.0
        notes.append("pixels of -1 kept, as marks of hidden ones")
    rows = as_map(image, channels=channels, lowest=lowest, notes=notes)
    notes += notice(rows, condition)
    if channel_order is not None:
        rows = as_map(image, channels=channels, channel_order=channel_order, lowest=lowest, notes=[])
    return BoundMap(rows, resize, tuple(notes))


def _with_hidden(image: Any) -> Any:
    """A map of the detector ``inpaint``, maybe from a file, with hidden pixels as -1; others as they are."""
    entries = cast("list[Any]", image if isinstance(image, list | tuple) else [image])
    if not any(key in getattr(entry, "info", {}) for entry in entries for key in (MEMORY, KEYWORD)):
        return cast(Any, image)
    from controlkit.preprocessors import marked

    return marked(image)


def _marks_hidden(image: object) -> bool:
    """Whether floats mark pixels with exactly -1, as maps of inpainting ControlNets do."""
    if isinstance(image, list | tuple):
        return any(_marks_hidden(entry) for entry in cast("list[object]", image))
    if not isinstance(image, np.ndarray | Tensor):
        return False
    values = cast(Any, image)
    below = values[values < 0] if "float" in str(values.dtype) else values[:0]
    return below.shape[0] > 0 and bool((below == -1).all())


def make_strength(
    scale: Scale,
    start: float,
    end: float,
    mode: Mode,
    block_scales: Sequence[float] | None,
    mask: Any,
) -> Strength:
    """The strength of ``module.on``'s arguments.

    Raises:
        ParameterError: A value out of its range.
        HintError: The mask cannot be used.
    """
    region = None if mask is None else read_mask(mask)
    blocks = None if block_scales is None else tuple(block_scales)
    return Strength(scale, start, end, mode, blocks, region)


def read_mask(mask: Any) -> Tensor:
    """A region, or one per picture, as (n, 1, H, W) in [0, 1]; regions of several sizes take the first's.

    Raises:
        HintError: The mask cannot be used.
    """
    regions = as_mask(mask)
    return (
        fit(regions, (regions[0].shape[-2], regions[0].shape[-1]))[0]
        if isinstance(regions, list)
        else regions
    )


def name_of(module: ControlModule) -> str:
    """What reports and errors call a module, such as ``controlnet canny``."""
    condition = getattr(module, "condition", None)
    source = module.source.rstrip("/").rsplit("/", 1)[-1]
    return f"{module.kind} {condition or source}".strip()


def refuse_meta(module: nn.Module, name: str) -> None:
    """Refuse weights that are not there: some kernels read arbitrary memory in their place."""
    if any(p.is_meta for p in module.parameters()) and not hasattr(module, "_hf_hook"):
        raise DeviceMismatch(
            name,
            found="weights on the meta device",
            expected="real weights",
            fix="Load the module with ck.load.",
        )


def spread(rows: Tensor, step: Step) -> Tensor:
    """(n, ...) as (1, ...) where one serves all rows, else one per row of the step.

    Pictures come prompt by prompt within each branch, so n maps for k*n pictures are each repeated k
    times, and the whole once per branch.
    """
    if rows.shape[0] == 1:
        return rows
    return rows.repeat_interleave(step.images // rows.shape[0], dim=0).repeat(
        len(step.branches), *[1] * (rows.ndim - 1)
    )


@dataclass(eq=False)
class Borrowed:
    """A module on the device of a run, and back where it was afterwards.

    Args:
        module: The module.
        run: The run.
    """

    module: nn.Module
    run: RunInfo
    _home: torch.device | None = field(default=None, init=False)

    @property
    def dtype(self) -> torch.dtype:
        """What the module computes in."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    def notes(self) -> tuple[str, ...]:
        """What is unusual about it."""
        notes: list[str] = []
        parameter = next(self.module.parameters())
        if self.dtype != self.run.dtype:
            notes.append(f"computes in {_short(self.dtype)} beside a {_short(self.run.dtype)} U-Net")
        if self.dtype == torch.float16 and self.run.device.type == "cpu":
            notes.append("float16 is slow on CPUs: load it with dtype=torch.float32")
        if self._travels(parameter):
            notes.append(f"moved from {parameter.device} to {self.run.device} for each run")
        return tuple(notes)

    def ready(self) -> None:
        """Bring the module to the run's device; modules that accelerate's hooks move are left to these."""
        parameter = next(self.module.parameters())
        hook: Any = getattr(self.module, "_hf_hook", None)
        if type(hook).__name__ == "CpuOffload":  # acts on forward alone, and the hint encoder runs before it
            hook.pre_forward(self.module)
        elif self._home is None and self._travels(parameter):
            self._home = parameter.device
            self.module.to(self.run.device)

    def back(self) -> None:
        """Bring it back."""
        if self._home is not None:
            self.module.to(self._home)
            self._home = None

    def _travels(self, parameter: Tensor) -> bool:
        return parameter.device != self.run.device and not hasattr(self.module, "_hf_hook")


class PerBranches:
    """A value that depends on a step's branches only, made once for each set of them."""

    def __init__(self, make: Callable[[Step], Any]) -> None:
        self._make = make
        self._made: dict[int, Any] = {}

    def get(self, step: Step) -> Any:
        """The value for this step."""
        key = len(step.branches)
        if key not in self._made:
            self._made[key] = self._make(step)
        return self._made[key]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
