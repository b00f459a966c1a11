"""What a Uni-ControlNet does during a run: maps and content read once, then added at the steps that act.

Its two halves have strengths of their own, and the local one reads the tokens that the global one adds. The
networks are in `local.py` and `tokens.py`; window, mode and region belong to the engine.

Source:
    ShihaoZhaoZSH/Uni-ControlNet@4da003c3 `models/uni_controlnet.py` (`apply_model`) and, for the halves of
    classifier-free guidance, `log_images` there and `models/ddim_hacked.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from controlkit.adapters.blocks.encoder_copy import skip_channels
from controlkit.adapters.uni_controlnet.config import PIXELS_PER_LATENT
from controlkit.adapters.uni_controlnet.local import Modulation
from controlkit.binding import Borrowed, BoundMap, PerBranches, name_of, refuse_meta, spread
from controlkit.contracts import Active, Branch, Residuals, RunInfo, Slot, Step, Target
from controlkit.errors import BaseMismatch, BatchMismatch
from controlkit.residuals import conditional
from controlkit.strength import Strength

if TYPE_CHECKING:
    from controlkit.adapters.uni_controlnet.model import UniControlNet

ALL = ""
"""The name of all maps together."""


@dataclass(frozen=True, eq=False)
class UniControl:
    """A Uni-ControlNet bound to maps, to a content image, or to both.

    Per acting step it costs one forward of the local network for all rows, however many maps there are; per
    run one of the feature extractor and one of the global network.

    Args:
        module: The network.
        maps: By name, or all together under an empty name; none: no local control.
        embedding: (n, dim) of the content images; zeros stand for none in particular; None: no tokens.
        local_strength: Of the residuals, with everything that applies to both halves.
        global_strength: Of the tokens.
    """

    module: UniControlNet
    maps: Mapping[str, BoundMap]
    embedding: Tensor | None
    local_strength: Strength
    global_strength: Strength

    @property
    def name(self) -> str:
        return name_of(self.module)

    @property
    def slots(self) -> frozenset[Slot]:
        local: tuple[Slot, ...] = ("skips", "mid") if self.maps else ()
        return frozenset((*local, *(() if self.embedding is None else ("tokens",))))

    @property
    def strength(self) -> Strength:
        """What the engine applies: with both halves a scale of 1 where either acts, as each has its own."""
        if not self._both:
            return self.local_strength if self.maps else self.global_strength
        scales = [self.local_strength.scale, self.global_strength.scale]
        if self.local_strength.is_constant_scale and self.global_strength.is_constant_scale:
            return replace(self.local_strength, scale=1.0 if any(scales) else 0.0)
        halves = (self.local_strength, self.global_strength)
        return replace(self.local_strength, scale=lambda done: float(any(half.at(done) for half in halves)))

    @property
    def _both(self) -> bool:
        return bool(self.maps) and self.embedding is not None

    def check(self, target: Target) -> None:
        refuse_meta(self.module, self.name)
        found = f"a Uni-ControlNet for {self.module.base} (tokens {self.module.token_dim} wide"
        fits = self.module.token_dim == target.token_dim
        expected = f"one for {target.describe()}"
        if self.maps:
            config = self.module.local.config
            widths = config.block_out_channels
            ours = (config.in_channels, skip_channels(widths, config.layers_per_block), None)
            fits = fits and ours == (target.channels, target.skip_channels, target.added_dim)
            found += f", levels {'/'.join(map(str, widths))}, latents of {config.in_channels} channels"
            expected += f" with latents of {target.channels} channels"
        if not fits:
            raise BaseMismatch(
                self.name,
                found=f"{found})",
                expected=expected,
                fix="Use the module made for this base model, or the base model it was made for.",
            )

    def prepare(self, run: RunInfo) -> Active:
        return _Running(self, run, both=self._both).active()


class _Running:
    """One run of a `UniControl`."""

    def __init__(self, control: UniControl, run: RunInfo, *, both: bool) -> None:
        self.control, self.run = control, run
        self.net = control.module
        self.borrowed = Borrowed(self.net, run)
        self.counts = {"forward": 0} | ({"hint": 0} if control.maps else {})
        ones = (1.0,) * run.steps
        self.local_plan = control.local_strength.plan(run.steps) if both else ones
        self.global_plan = control.global_strength.plan(run.steps) if both else ones
        self.maps, self.notes = self._stacked() if control.maps else (None, ())
        self._check_content()
        if both:
            self.notes = (*self.notes, _spoken("local", self.local_plan), _spoken("global", self.global_plan))
        else:
            missing, scale, reads = (
                ("content", control.global_strength.scale, "global_scale")
                if control.maps
                else ("maps", control.local_strength.scale, "local_scale")
            )
            if scale != 1.0:
                self.notes = (*self.notes, f"{reads} has no effect without {missing}")
        self._encoded: tuple[Modulation, ...] | None = None
        self._encoded_rows = PerBranches(self._encode)
        self._content: Tensor | None = None
        self._content_rows: dict[tuple[Branch, ...], Tensor] = {}

    def active(self) -> Active:
        return Active(
            tokens=None if self.control.embedding is None else self.tokens,
            residuals=self.residuals if self.control.maps else None,
            notes=(*self.notes, *self.borrowed.notes()),
            counts=self.counts,
            close=self.borrowed.back,
        )

    def tokens(self, step: Step) -> Tensor:
        """(rows, count, dim) times their scale; (rows, 0, dim) where it is 0."""
        scale = self.global_plan[step.index]
        own = self._own_tokens(step)
        return own * scale if scale else own[:, :0]

    def residuals(self, step: Step) -> Residuals:
        scale = self.local_plan[step.index]
        if not scale:
            return Residuals()
        self.borrowed.ready()
        dtype = self.borrowed.dtype
        assert step.prompt is not None  # check() refuses U-Nets without tokens
        tokens = step.prompt.to(dtype)
        if self.control.embedding is not None:
            tokens = torch.cat([tokens, self.tokens(step).to(tokens)], dim=1)
        encoded = self._encoded_rows.get(step)
        self.counts["forward"] += 1
        raw = self.net.local(step.latents.to(dtype), step.timestep, tokens, encoded=encoded)
        if scale == 1.0 or raw.mid is None:
            return raw
        return Residuals(tuple(skip * scale for skip in raw.skips), raw.mid * scale)

    def _encode(self, step: Step) -> tuple[Modulation, ...]:
        """What depends on the maps alone, a row each for the rows of a step."""
        if self._encoded is None:
            assert self.maps is not None
            self.counts["hint"] += 1
            self._encoded = self.net.local.encode(self.maps.to(self.run.device, self.borrowed.dtype))
        return tuple(tuple(spread(part, step) for part in level) for level in self._encoded)

    def _own_tokens(self, step: Step) -> Tensor:
        """Tokens at scale 1: the content's go with the prompt, all other rows get those of zeros.

        In InstructPix2Pix's three-way guidance the branch that sees the picture alone has no prompt, and so
        gets those of zeros too.
        """
        if step.branches not in self._content_rows:
            embedding = self.control.embedding
            assert embedding is not None
            made = self._content
            if made is None:
                self.borrowed.ready()
                both = torch.cat([embedding, torch.zeros_like(embedding[:1])])
                made = self.net.tokens(both.to(self.run.device, self.borrowed.dtype))
                self._content = made
            content, absent = made[:-1], made[-1:]
            wanted = conditional(step.branches)
            content = content.repeat_interleave(step.images // content.shape[0], dim=0)
            rows = [content if branch in wanted else absent.expand_as(content) for branch in step.branches]
            self._content_rows[step.branches] = torch.cat(rows)
        return self._content_rows[step.branches]

    def _stacked(self) -> tuple[Tensor, tuple[str, ...]]:
        """All maps, (n, local_channels, H, W), zeros for the absent ones; and what to say about them."""
        control, run = self.control, self.run
        size = run.height * PIXELS_PER_LATENT, run.width * PIXELS_PER_LATENT
        read: dict[str, Tensor] = {}
        notes: list[str] = []
        for name, bound in control.maps.items():
            read[name], said = bound.fitted(f"{control.name} {name}".strip(), run, size)
            notes += [f"{name}: {note}" if name else note for note in said]
        if ALL in read:
            return read[ALL], tuple(notes)
        notes.insert(0, f"maps: {', '.join(read)}")
        counts = {len(rows) for rows in read.values()} - {1}
        number = max(counts, default=1) if len(counts) < 2 else run.images
        blank = torch.zeros_like(next(iter(read.values()))[:1])
        rows = [read.get(name, blank) for name in control.module.conditions]
        return torch.cat([row.repeat_interleave(number // len(row), dim=0) for row in rows], dim=1), tuple(
            notes
        )

    def _check_content(self) -> None:
        embedding, run = self.control.embedding, self.run
        if embedding is not None and run.images % len(embedding):
            raise BatchMismatch(
                f"{self.control.name}: content",
                found=f"{len(embedding)} for {run.images} pictures",
                expected=f"one, or a number that divides {run.images}: one per prompt or per picture",
                fix="Give one for all, or a list with one entry per prompt.",
                code="CK-H20",
            )


def _spoken(half: str, plan: tuple[float, ...]) -> str:
    acting = sorted(scale for scale in plan if scale) or [0.0]
    low, high = acting[0], acting[-1]
    said = f"{half} scale {low:g}" if low == high else f"{half} scale {low:g} .. {high:g}"
    return said if max(map(abs, acting)) <= 2 else f"{said} is outside the usual -2 .. 2"
