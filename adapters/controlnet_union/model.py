"""The ControlNet-Union network: tensors in, residuals for a U-Net out. No pipeline, no diffusers.

What it does during a run (scales and windows of each type, sharing the hints) is in `control.py`.

Source:
    `models/controlnet_union.py` of xinsir6/ControlNetPlus@b4842057; operations, parameter names and the
    scales of each type as in diffusers 0.42 `models/controlnets/controlnet_union.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks import TimeMlp, sinusoids
from controlkit.adapters.blocks.encoder_copy import (
    HintEncoder,
    check_features,
    check_map,
    check_rows,
    down_block,
    mid_block,
    size_conditions,
    skip_channels,
    time_angles,
    zero_conv,
)
from controlkit.adapters.controlnet_union.config import ControlNetUnionConfig
from controlkit.adapters.controlnet_union.types import number_of
from controlkit.contracts import Residuals
from controlkit.errors import ParameterError
from controlkit.module import ControlModule

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlkit.contracts import Control


class ConditionLayer(nn.Module):
    """One layer of the condition transformer: attention and a QuickGELU perceptron, as in CLIP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(positions, sequences, width); attention is over the positions of each sequence."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


@dataclass(frozen=True)
class UnionHint:
    """Maps of one or several types, encoded and brought together once for many steps.

    Args:
        features: (rows or 1, width, h, w), what is added to the latents after the first convolution.
        types: Numbers of the types in it.
        scale: What the residuals are multiplied by: the scale of a type that acts alone. Where several act,
            their scales are in the features, and this is 1.
    """

    features: Tensor
    types: tuple[int, ...]
    scale: float = 1.0


class ControlNetUnion(ControlModule):
    """A ControlNet that reads maps of several types, alone or together, in one forward.

    One forward costs as much as a ControlNet's, whatever the number of types. Scales act as in diffusers:
    where one type acts, its residuals are multiplied by its scale; where several do, each one's features
    and the correction that the condition transformer makes from them are, and the residuals are left as
    they are. In the latter case small scales still leave an effect, as the network is told which types
    there are; a type that shall not act is left out (`on` does that at scale 0 and outside its window).

    The condition transformer's attention is over the rows of the batch, type by type, in the original code
    and in diffusers, where the batch lies where its layers expect the sequence. Rows with the same maps
    (the halves of classifier-free guidance) come out as each would alone; pictures with different maps
    leak into one another. `forward` can do either; `on` keeps pictures apart.

    Args:
        config: What to build. New weights leave the U-Net as it is: the zero convolutions are zero.

    Attributes:
        config: The same, frozen.
    """

    kind: ClassVar[str] = "controlnet-union"

    def __init__(self, config: ControlNetUnionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ControlNetUnionConfig(addition_time_embed_dim=256)
        widths = config.block_out_channels
        time_dim = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeMlp(widths[0], time_dim)
        if config.addition_embed_type:
            self.add_embedding = TimeMlp(config.projection_class_embeddings_input_dim or 0, time_dim)
        self.controlnet_cond_embedding = HintEncoder(
            config.conditioning_channels, config.conditioning_embedding_out_channels, widths[0]
        )
        width = config.num_trans_channel
        self.task_embedding = nn.Parameter(width**0.5 * torch.randn(config.num_control_type, width))
        self.transformer_layes = nn.ModuleList(
            ConditionLayer(width, config.num_trans_head) for _ in range(config.num_trans_layer)
        )
        self.spatial_ch_projs = nn.Linear(width, config.num_proj_channel)
        nn.init.zeros_(self.spatial_ch_projs.weight)
        nn.init.zeros_(self.spatial_ch_projs.bias)
        self.control_add_embedding = TimeMlp(
            (config.addition_time_embed_dim or 0) * config.num_control_type, time_dim
        )
        self.down_blocks = nn.ModuleList(down_block(config, level, time_dim) for level in range(len(widths)))
        self.mid_block = mid_block(config, time_dim)
        self.controlnet_down_blocks = nn.ModuleList(
            zero_conv(channels, channels) for channels in skip_channels(widths, config.layers_per_block)
        )
        self.controlnet_mid_block = zero_conv(widths[-1], widths[-1])

    @property
    def base(self) -> str:
        """``sdxl`` for the published ones; told by the width of the tokens."""
        return self.config.base

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor | float,
        tokens: Tensor,
        maps: Mapping[Any, Tensor] | None = None,
        *,
        scales: float | Mapping[Any, float] = 1.0,
        added: Mapping[str, Tensor] | None = None,
        hint: UnionHint | None = None,
        keep_apart: bool = False,
    ) -> Residuals:
        """Residuals, scaled as `ControlNetUnion` says.

        Args:
            latents: (batch, in_channels, h, w), as the U-Net gets them, in the weights' dtype.
            timesteps: () or (batch,), in [0, 1000), high is noisy; may be fractional.
            tokens: (batch, n, cross_attention_dim), the prompt's.
            maps: For each type that acts, by name or number, (batch or 1, conditioning_channels, 8h, 8w),
                RGB in [0, 1].
            scales: One for all, or one per type; 1 where a type is not named.
            added: SDXL's ``text_embeds`` (batch, pooled) and ``time_ids`` (batch, 6), as in diffusers'
                ``added_cond_kwargs``.
            hint: What `encode` made of the maps; then neither maps nor scales are needed.
            keep_apart: See `encode`.

        Returns:
            ``skips`` in the U-Net's order and ``mid``; 1x1 each where the config pools them globally.

        Raises:
            ParameterError: Neither maps nor a hint, or both; a type that the network does not have; SDXL's
                conditions are missing.
            HintError: A map does not fit the latents.
            BatchMismatch: Another number of rows than the latents have.
        """
        if (maps is None) == (hint is None):
            raise ParameterError(
                "maps and hint",
                found="neither" if hint is None else "both",
                expected="one of them",
                fix="Give maps by type, or what encode made of them.",
            )
        sample = self.conv_in(latents)
        if hint is None:
            cast = {name: given.to(sample.dtype) for name, given in (maps or {}).items()}
            hint = self.encode(cast, scales, keep_apart=keep_apart)
        check_features(self.config, hint.features, sample, "maps")
        time = self._embed_time(latents, timesteps, hint.types, added)
        skips = [sample + hint.features]
        for block in self.down_blocks:
            skips.extend(block(skips[-1], time, tokens))
        mid = self.controlnet_mid_block(self.mid_block(skips[-1], time, tokens))
        outputs = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        if hint.scale != 1.0:
            mid, outputs = mid * hint.scale, [output * hint.scale for output in outputs]
        if self.config.global_pool_conditions:
            mid = mid.mean(dim=(2, 3), keepdim=True)
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        return Residuals(skips=tuple(outputs), mid=mid)

    def encode(
        self,
        maps: Mapping[Any, Tensor],
        scales: float | Mapping[Any, float] = 1.0,
        *,
        keep_apart: bool = False,
    ) -> UnionHint:
        """Encode maps once for many steps.

        Args:
            maps: As for `forward`; at least one.
            scales: As for `forward`.
            keep_apart: Each row as if it were alone. By default rows meet in the condition transformer, as
                in the original; the same where all rows have the same maps.

        Raises:
            ParameterError: No map, a type that the network does not have, or a scale for one without a map.
            HintError: A map of another number of channels.
        """
        if not maps:
            raise ParameterError("maps", found="none", expected="at least one type with its map")
        if isinstance(scales, Mapping) and (unknown := [name for name in scales if name not in maps]):
            raise ParameterError(
                "scales", found=f"{unknown[0]!r}, which has no map", expected="types that have one"
            )
        parts: list[tuple[int, Tensor, float]] = []
        for name, given in maps.items():
            number = number_of(name, self.config.num_control_type, "maps")
            scale = float(scales.get(name, 1.0)) if isinstance(scales, Mapping) else float(scales)
            parts.append((number, self.encode_map(given), scale))
        return self.fuse(parts, keep_apart=keep_apart)

    def encode_map(self, control_map: Tensor) -> Tensor:
        """One map, (batch, conditioning_channels, H, W) in [0, 1], as features (batch, width, h, w).

        Raises:
            HintError: It has another number of channels.
        """
        check_map(self.config, control_map, "maps")
        return self.controlnet_cond_embedding(control_map)

    def fuse(self, parts: Sequence[tuple[int, Tensor, float]], *, keep_apart: bool = False) -> UnionHint:
        """Bring the features of several types together.

        Args:
            parts: Of each: its number, what `encode_map` made of its map, its scale. Those with one row
                serve all rows.
            keep_apart: As for `encode`.
        """
        rows = max(features.shape[0] for _, features, _ in parts)
        alone = len(parts) == 1
        total: Tensor | None = None
        for number, features, given in parts:
            check_rows("maps", features, rows, one=True)
            scale = 1.0 if alone else given
            token = (features.mean(dim=(2, 3)) + self.task_embedding[number]) * scale
            # The other types' tokens, and the latents' that the original adds, never meet this one.
            token = token[None] if keep_apart else token.expand(rows, -1)[:, None]
            for layer in self.transformer_layes:
                token = layer(token)
            token = token[0] if keep_apart else token[:, 0]
            correction = self.spatial_ch_projs(token)[:, :, None, None] * scale
            part = features * scale + correction
            total = part if total is None else total + part
        assert total is not None
        return UnionHint(total, tuple(number for number, _, _ in parts), parts[0][2] if alone else 1.0)

    def _embed_time(
        self,
        latents: Tensor,
        timesteps: Tensor | float,
        types: tuple[int, ...],
        added: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """(batch, 4 * width): time, types and SDXL's conditions, after the SiLU that all blocks share."""
        config = self.config
        time = self.time_embedding(time_angles(config, latents, timesteps))
        flags = torch.zeros(config.num_control_type, device=latents.device)
        flags[list(types)] = 1.0
        marks = sinusoids(
            flags,
            config.addition_time_embed_dim or 0,
            cosine_first=config.flip_sin_to_cos,
            shift=config.freq_shift,
        )
        time = time + self.control_add_embedding(marks.reshape(1, -1).to(time.dtype))
        if config.addition_embed_type:
            sizes = size_conditions(config, added, latents.shape[0], time.dtype)
            time = time + self.add_embedding(sizes)
        return F.silu(time)

    def on(
        self,
        maps: Mapping[Any, Any],
        /,
        *,
        detect: str | Mapping[Any, str | None] | None = None,
        detect_options: Mapping[str, Any] | Mapping[Any, Mapping[str, Any]] | None = None,
        scale: float | Callable[[float], float] | Sequence[tuple[float, float]] | Mapping[Any, Any] = 1.0,
        start: float | Mapping[Any, float] = 0.0,
        end: float | Mapping[Any, float] = 1.0,
        mode: Literal["balanced", "prompt", "control"] = "balanced",
        block_scales: Sequence[float] | None = None,
        mask: Any = None,
        resize: Literal["stretch", "crop", "pad"] = "stretch",
        channel_order: Literal["rgb", "bgr"] | None = None,
    ) -> Control:
        """Bind to the maps of one or several types: what `controlkit.attach` takes.

            union.on({"canny": edges, "depth": depth}, scale={"canny": 0.9, "depth": 0.5}, end={"depth": 0.4})

        All types that act at a step go through the network in one forward. A type is left out where its
        scale is 0 or the step outside its window, and where none acts nothing runs. (diffusers 0.42 differs
        there with two types or more: windows and scales of 0 leave the types in, and so an effect.)

        Args:
            maps: For each type, by name (``openpose``, ``depth``, ``softedge``, ``scribble``, ``canny``,
                ``lineart``, ``mlsd``, ``normal``, ``segment``; ProMax also ``tile`` and ``repaint``) or
                number, what `controlkit.module.MapModule.on` takes.
            detect: A detector's name, or one per type.
            detect_options: For the detector, or for the detector of each type.
            scale: As there, or one per type; 1 for types that are not named. How it enters, see
                `ControlNetUnion`.
            start: Fraction of the run at which it begins to act, or one per type.
            end: Fraction at which it ends, or one per type.
            mode: ``balanced``, ``prompt`` or ``control``, for all types together.
            block_scales: One factor per residual, in the U-Net's order, the middle last.
            mask: A region in [0, 1], 1 where the control acts.
            resize: How maps of another shape are fitted.
            channel_order: ``bgr`` where the maps have that order.

        Raises:
            HintError: A map or the mask cannot be used.
            ParameterError: A type that the network does not have, an option out of its range, or one for a
                type without a map.
        """
        from controlkit.adapters.controlnet_union.control import bind_maps

        return bind_maps(
            self,
            maps,
            per_type={"detect": detect, "detect_options": detect_options, "scale": scale}
            | {"start": start, "end": end},
            for_all={"mode": mode, "block_scales": block_scales, "mask": mask},
            reading={"resize": resize, "channel_order": channel_order},
        )

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()
