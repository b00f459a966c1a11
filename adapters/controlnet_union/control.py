"""What a ControlNet-Union does during a run: each type by its own scale and window, all in one forward.

The network is in `model.py`. The engine knows one strength per control: for one type that is the type's,
for several it says at which steps any of them acts, and what each does there is applied here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from controlkit.adapters.blocks.encoder_copy import hint_factor, refuse_other_base
from controlkit.adapters.controlnet_union.model import ControlNetUnion, UnionHint
from controlkit.adapters.controlnet_union.types import number_of, title_of
from controlkit.binding import Borrowed, BoundMap, make_strength, read_map, refuse_meta
from controlkit.contracts import Active, Residuals, RunInfo, Slot, Step, Target
from controlkit.errors import ControlKitWarning, ParameterError
from controlkit.strength import Strength


@dataclass(frozen=True, eq=False)
class TypedMap:
    """The map of one type, with the strength of that type.

    Args:
        name: What the user called the type.
        number: The network's number of it.
        map: Read and checked, not yet resized.
        strength: Scale and window of this type.
    """

    name: str
    number: int
    map: BoundMap
    strength: Strength


@dataclass(frozen=True)
class AnyOf(Strength):
    """Acts, at scale 1, at the steps at which any of several strengths does.

    Args:
        parts: The strengths.
    """

    parts: tuple[Strength, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Whether all of them are, so that the number of steps need not be known."""
        return all(part.is_constant for part in self.parts)

    def plan(self, count: int) -> tuple[float, ...]:
        """1.0 for each of ``count`` steps at which one acts, 0.0 for the others."""
        plans = [part.plan(count) for part in self.parts]
        return tuple(float(any(scales)) for scales in zip(*plans, strict=True))


@dataclass(frozen=True, eq=False)
class UnionControl:
    """A ControlNet-Union bound to the maps of its types. Adds to the skips and the middle.

    Per step at which any type acts it costs one forward of the network; per run one of the hint encoder for
    each type that acts at all.
    """

    module: ControlNetUnion
    maps: tuple[TypedMap, ...]
    strength: Strength

    @property
    def name(self) -> str:
        return f"{self.module.kind} {'+'.join(part.name for part in self.maps)}"

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(("skips", "mid"))

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        refuse_other_base(self.name, "a ControlNet-Union", self.module.config, target)

    def prepare(self, run: RunInfo) -> Active:
        return _UnionRun(self, run).active()


class _UnionRun:
    """One run: the encoded maps, and what was made of those that acted together last."""

    def __init__(self, control: UnionControl, run: RunInfo) -> None:
        self.control, self.run = control, run
        self.net = control.module
        self.plans = {part: part.strength.plan(run.steps) for part in control.maps}
        self.borrowed = Borrowed(self.net, run)
        self.counts = {"hint": 0, "forward": 0, **{part.name: 0 for part in control.maps}}
        self.fitted: dict[TypedMap, Tensor] = {}
        self.encoded: dict[TypedMap, Tensor] = {}
        self.hint: tuple[tuple[tuple[TypedMap, float], ...], UnionHint] | None = None

    def active(self) -> Active:
        """Fit the maps and say what will happen."""
        notes: list[str] = []
        factor = hint_factor(self.net.config)
        size = (self.run.height * factor, self.run.width * factor)
        for part in self.control.maps:
            name = f"{self.control.name}: {part.name}"
            self.fitted[part], said = part.map.fitted(name, self.run, size)
            notes += (f"{part.name}: {note}" for note in said)
        several = len(self.control.maps) > 1
        notes += (self._when(part) for part in self.control.maps if several)
        numbers = [part.number for part in self.control.maps]
        for number in sorted({number for number in numbers if numbers.count(number) > 1}):
            names = " and ".join(part.name for part in self.control.maps if part.number == number)
            notes.append(f"{names} are one type to this network, which was trained with one map of each")
        return Active(
            residuals=self.residuals,
            cond_only=self.net.config.global_pool_conditions,
            notes=(*notes, *self.borrowed.notes()),
            counts=self.counts,
            close=self.borrowed.back,
        )

    def _when(self, part: TypedMap) -> str:
        acting = sorted({scale for scale in self.plans[part] if scale})
        if not acting and part.strength.scale != 0:
            window = f"[{part.strength.start:g}, {part.strength.end:g}]"
            text = f"{part.name} acts on 0 of {self.run.steps} steps: no step falls in its window {window}"
            warnings.warn(ControlKitWarning(f"{self.control.name}: {text}"), stacklevel=2)
            return text
        number = sum(map(bool, self.plans[part]))
        scale = " .. ".join(
            f"{value:g}" for value in dict.fromkeys((acting or [0.0])[:: len(acting) - 1 or 1])
        )
        return f"{part.name} acts on {number} of {self.run.steps} steps, at scale {scale}"

    def residuals(self, step: Step) -> Residuals:
        """What the types that act at this step add together."""
        plans = {part: plan[step.index] for part, plan in self.plans.items()}
        acting = tuple((part, scale) for part, scale in plans.items() if scale)
        if not acting:
            return Residuals()
        if len(self.control.maps) == 1:
            acting = ((acting[0][0], 1.0),)  # the engine applies its scale
        for part, _ in acting:
            self.counts[part.name] += 1
        self.counts["forward"] += 1
        self.borrowed.ready()
        dtype = self.borrowed.dtype
        hint = self._together(acting)
        tokens = step.prompt
        assert tokens is not None  # check() refuses U-Nets without tokens
        return self.net(
            step.latents.to(dtype),
            step.timestep,
            tokens.to(dtype),
            added={key: value.to(dtype) for key, value in step.added.items()},
            hint=replace(hint, features=_rows(hint.features, step)),
        )

    def _together(self, acting: tuple[tuple[TypedMap, float], ...]) -> UnionHint:
        """One row, or one per picture; made anew only when other types act, or at other scales."""
        if self.hint is None or self.hint[0] != acting:
            for part, _ in acting:
                if part not in self.encoded:
                    self.counts["hint"] += 1
                    given = self.fitted[part].to(self.run.device, self.borrowed.dtype)
                    self.encoded[part] = self.net.encode_map(given)
            rows = max(self.encoded[part].shape[0] for part, _ in acting)
            parts = [
                (part.number, _per_picture(self.encoded[part], rows, self.run), scale)
                for part, scale in acting
            ]
            self.hint = (acting, self.net.fuse(parts, keep_apart=True))
        return self.hint[1]


def _per_picture(features: Tensor, rows: int, run: RunInfo) -> Tensor:
    """One row, where one is enough for all; else one for each picture of the run."""
    if rows == 1 or features.shape[0] == 1:
        return features
    return features.repeat_interleave(run.images // features.shape[0], dim=0)


def _rows(features: Tensor, step: Step) -> Tensor:
    """One row, or one for each row of the step."""
    return features if features.shape[0] == 1 else features.repeat(len(step.branches), 1, 1, 1)


def bind_maps(
    module: ControlNetUnion,
    maps: object,
    *,
    per_type: Mapping[str, Any],
    for_all: Mapping[str, Any],
    reading: Mapping[str, Any],
) -> UnionControl:
    """See `ControlNetUnion.on`, whose arguments these are; those in ``per_type`` may be dicts by type."""
    if not isinstance(maps, Mapping) or not maps:
        raise ParameterError(
            "maps",
            found="no map" if isinstance(maps, Mapping) else f"a {type(maps).__name__}",
            expected="a dict from type to map",
            fix='Say what the map shows: union.on({"canny": edges}).',
        )
    given = cast(Mapping[Any, Any], maps)
    default = {"detect": None, "detect_options": None, "scale": 1.0, "start": 0.0, "end": 1.0}
    parts: list[TypedMap] = []
    for key, image in given.items():
        number = number_of(key, module.config.num_control_type, "maps")
        own = {name: _of_type(name, per_type[name], key, given, value) for name, value in default.items()}
        detecting = {name: own.pop(name) for name in ("detect", "detect_options")}
        shown = key if isinstance(key, str) else title_of(number)
        bound = read_map(
            image,
            channels=module.config.conditioning_channels,
            condition=shown,
            base=module.base,
            **detecting,
            **reading,
        )
        strength = make_strength(**own, **for_all)
        parts.append(TypedMap(shown, number, bound, strength))
    if len(parts) == 1:
        return UnionControl(module, tuple(parts), parts[0].strength)
    strengths = tuple(part.strength for part in parts)
    always_off = all(not callable(each.scale) and each.scale == 0 for each in strengths)
    overall = AnyOf(
        scale=0.0 if always_off else 1.0,
        start=min(each.start for each in strengths),
        end=max(each.end for each in strengths),
        mode=strengths[0].mode,
        block_scales=strengths[0].block_scales,
        mask=strengths[0].mask,
        parts=strengths,
    )
    return UnionControl(module, tuple(parts), overall)


def _of_type(name: str, value: Any, key: Any, maps: Mapping[Any, Any], default: Any) -> Any:
    """What an argument says for one type: itself, or its entry for the type.

    Raises:
        ParameterError: It has entries for types without a map.
    """
    if not isinstance(value, Mapping):
        return value
    entries = cast(Mapping[Any, Any], value)
    others = [entry for entry in entries if entry not in maps]
    if name == "detect_options" and len(others) == len(entries):
        return entries  # options of one detector for all
    if others:
        raise ParameterError(
            name,
            found=f"an entry for {others[0]!r}, which has no map",
            expected=f"entries for {', '.join(map(repr, maps))}",
            fix="Name the types as in maps.",
        )
    return entries.get(key, default)
