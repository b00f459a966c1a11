"""The CoAdapter fuser: what several adapters add, each weighed by what the others show, and summed.

What it does during a run is in `control.py`.

Source:
    Operations and parameter names, misspellings included, of TencentARC/T2I-Adapter@16bba674
    `ldm/modules/encoders/adapter.py` (`CoAdapterFuser`); the numbers of the conditions are those of
    `ldm/modules/extra_condition/api.py` (`ExtraCondition`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from controlkit.adapters.blocks.clip import ClipLayer, WideNorm
from controlkit.adapters.coadapter.config import CoAdapterFuserConfig
from controlkit.errors import HintError, ParameterError
from controlkit.module import ControlModule

if TYPE_CHECKING:
    from controlkit.contracts import Control

TASKS = {
    "sketch": 0,
    "keypose": 1,
    "seg": 2,
    "depth": 3,
    "canny": 4,
    "style": 5,
    "color": 6,
    "openpose": 7,
}
"""The number under which the fuser knows each condition."""

_ROWS = 16
"""Room for conditions in the original's table."""


class CoAdapterFuser(ControlModule):
    """A network that reads what several adapters made of their maps and pictures, once per run.

    Args:
        config: What to build; new weights leave everything as it is, as before the original's training.

    Attributes:
        config: The same, frozen.
    """

    kind: ClassVar[str] = "coadapter-fuser"

    def __init__(self, config: CoAdapterFuserConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CoAdapterFuserConfig()
        width, levels = config.width, config.unet_channels
        deviation = width**0.5
        self.task_embedding = nn.Parameter(torch.randn(_ROWS, width) * deviation)
        self.positional_embedding = nn.Parameter(torch.randn(len(levels), width) * deviation)
        self.spatial_feat_mapping = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(channels, width)) for channels in levels
        )
        layers = (ClipLayer(width, config.num_head) for _ in range(config.n_layes))
        self.transformer_layes = nn.Sequential(*layers)
        self.ln_post = WideNorm(width)
        self.ln_pre = WideNorm(width)
        self.spatial_ch_projs = nn.ModuleList(nn.Linear(width, channels) for channels in levels)
        self.seq_proj = nn.Parameter(torch.zeros(width, width))
        for parameter in self.spatial_ch_projs.parameters():
            nn.init.zeros_(parameter)

    @property
    def base(self) -> str:
        """``sd1`` for the published sizes, else ``other``."""
        return self.config.base

    def forward(
        self, features: Mapping[str, Sequence[Tensor] | Tensor]
    ) -> tuple[tuple[Tensor, ...] | None, Tensor | None]:
        """What all conditions together add.

        Args:
            features: By condition (a key of `TASKS`), each already multiplied by its weight: a list of
                maps (batch, channels, h, w), one per level, as a `T2IAdapter` gives; or tokens
                (batch, n, width), as a `StyleAdapter` gives. All of one batch, in the weights' dtype.

        Returns:
            The maps, one per level, each the sum over the conditions that have maps; None if none has.
            The tokens (batch, n, width) of the others, in the order given; None if there are none.

        Raises:
            ParameterError: A condition that the fuser does not know.
            HintError: Features of another shape.
        """
        if not features:
            return None, None
        parts: list[Tensor] = []
        for name, feature in features.items():
            self._check(name, feature)
            part = feature if isinstance(feature, Tensor) else self._summary(feature)
            parts.append(part + self.task_embedding[TASKS[name]])
        lengths = [part.shape[1] for part in parts]
        if len({part.shape[0] for part in parts}) > 1:
            raise HintError(
                "features",
                found="batches of " + ", ".join(str(part.shape[0]) for part in parts),
                expected="one size of batch",
            )
        seen = self.ln_post(self.transformer_layes(self.ln_pre(torch.cat(parts, dim=1))))
        maps: tuple[Tensor, ...] | None = None
        tokens: list[Tensor] = []
        for feature, said in zip(features.values(), seen.split(lengths, dim=1), strict=True):
            if isinstance(feature, Tensor):
                tokens.append(feature * (said @ self.seq_proj + 1))
                continue
            weighed = tuple(
                level * (project(said[:, number])[:, :, None, None] + 1)
                for number, (level, project) in enumerate(zip(feature, self.spatial_ch_projs, strict=True))
            )
            maps = weighed if maps is None else tuple(a + b for a, b in zip(maps, weighed, strict=True))
        return maps, torch.cat(tokens, dim=1) if tokens else None

    def _summary(self, maps: Sequence[Tensor]) -> Tensor:
        """One token per level: the map's mean, mapped to the width, and where in the U-Net it is."""
        tokens = [m(level.mean(dim=(2, 3))) for m, level in zip(self.spatial_feat_mapping, maps, strict=True)]
        return torch.stack(tokens, dim=1) + self.positional_embedding

    def _check(self, name: str, feature: Sequence[Tensor] | Tensor) -> None:
        if name not in TASKS:
            raise ParameterError(
                "features", found=f"the condition {name!r}", expected=" or ".join(map(repr, TASKS))
            )
        channels, width = self.config.unet_channels, self.config.width
        if isinstance(feature, Tensor):
            fits = feature.ndim == 3 and feature.shape[-1] == width
            found, expected = f"shape {tuple(feature.shape)}", f"(batch, tokens, {width})"
        else:
            ours = tuple(level.shape[1] if level.ndim == 4 else 0 for level in feature)
            fits = ours == channels
            found = f"{len(feature)} maps of " + ", ".join(str(tuple(level.shape)) for level in feature)
            expected = (
                f"{len(channels)} maps (batch, channels, h, w) of {'/'.join(map(str, channels))} channels"
            )
        if not fits:
            raise HintError(f"features[{name!r}]", found=found, expected=expected)

    def on(
        self,
        members: Mapping[str, Control],
        /,
        *,
        scale: float | Callable[[float], float] | Sequence[tuple[float, float]] = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> Control:
        """Bind to bound adapters: one control that adds what they add together, for `controlkit.attach`.

        ``fuser.on({"canny": canny.on(edges, scale=0.8), "style": style.on(picture)})``. Each member's own
        scale, scale curve, window, block scales and ``mode="prompt"`` weigh its features before the
        fuser, as the original's condition weights do. In steps in which a member does not act the fuser
        does not see it; in steps in which none acts nothing is added. Members are not attached besides.

        Args:
            members: By condition (sketch, keypose, seg, depth, canny, color, openpose: what
                ``T2IAdapter.on`` gives; style: what ``StyleAdapter.on`` gives), in the order in which
                their tokens are put.
            scale: Of all that comes out: a number, a function of the fraction done, or points.
            start: Fraction of the run at which any of it begins to act.
            end: Fraction at which it ends.

        Raises:
            ParameterError: No members, a condition that the fuser does not know, a control of another
                kind, or a member with a mask or with ``mode="control"``, which the fuser cannot honour.
        """
        from controlkit.adapters.coadapter.control import CoAdapterControl, check_members, whole_strength

        check_members(members)
        return CoAdapterControl(self, dict(members), whole_strength(members, scale, start, end))

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    def original_state(self) -> dict[str, Tensor]:
        """Its weights; the original's names are its own. The head count is not in them."""
        return dict(self.state_dict())
