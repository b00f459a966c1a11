"""The ControlNet network: tensors in, residuals for a U-Net out. No pipeline, no diffusers.

What it does during a run (scale, window, mode, sharing the hint) is in `control.py`.

Source:
    Zhang et al. (2023), arXiv:2302.05543, section 3; operations and parameter names of diffusers 0.42
    `models/controlnets/controlnet.py`, to the bit in float32 on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks import TimeMlp
from controlkit.adapters.blocks.encoder_copy import (
    HintEncoder,
    check_features,
    check_map,
    down_block,
    mid_block,
    size_conditions,
    skip_channels,
    time_angles,
    zero_conv,
)
from controlkit.adapters.controlnet.config import ControlNetConfig
from controlkit.contracts import Residuals
from controlkit.errors import ParameterError
from controlkit.module import MapModule

if TYPE_CHECKING:
    from controlkit.binding import BoundMap
    from controlkit.contracts import Control
    from controlkit.strength import Strength


class ControlNet(MapModule):
    """A copy of the U-Net's encoder that reads a control map and answers with residuals.

    Made for the base model named by `base`. One forward costs a little more than half of one of the
    U-Net's. It reads the prompt's tokens and adds to every skip connection and after the middle block.

    Args:
        config: What to build. New weights leave the U-Net as it is: the zero convolutions are zero.

    Attributes:
        config: The same, frozen.
    """

    kind: ClassVar[str] = "controlnet"

    def __init__(self, config: ControlNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ControlNetConfig()
        widths = config.block_out_channels
        time_dim = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeMlp(widths[0], time_dim)
        if config.addition_embed_type:
            self.add_embedding = TimeMlp(config.projection_class_embeddings_input_dim or 0, time_dim)
        self.controlnet_cond_embedding = HintEncoder(
            config.conditioning_channels, config.conditioning_embedding_out_channels, widths[0]
        )
        self.down_blocks = nn.ModuleList(down_block(config, level, time_dim) for level in range(len(widths)))
        self.mid_block = mid_block(config, time_dim)
        self.controlnet_down_blocks = nn.ModuleList(
            zero_conv(channels, channels) for channels in skip_channels(widths, config.layers_per_block)
        )
        self.controlnet_mid_block = zero_conv(widths[-1], widths[-1])

    @property
    def base(self) -> str:
        """``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``, told by the width of the tokens."""
        return self.config.base

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor | float,
        tokens: Tensor,
        control_map: Tensor | None = None,
        *,
        added: Mapping[str, Tensor] | None = None,
        hint: Tensor | None = None,
    ) -> Residuals:
        """Residuals at scale 1.

        Args:
            latents: (batch, in_channels, h, w), as the U-Net gets them, in the weights' dtype.
            timesteps: () or (batch,), in [0, 1000), high is noisy; may be fractional.
            tokens: (batch, n, cross_attention_dim), the prompt's.
            control_map: (batch or 1, conditioning_channels, 8h, 8w), RGB in [0, 1].
            added: SDXL's ``text_embeds`` (batch, pooled) and ``time_ids`` (batch, 6), as in diffusers'
                ``added_cond_kwargs``.
            hint: What `encode_hint` made of the map, (batch or 1, width, h, w); then no map is needed.

        Returns:
            ``skips`` in the U-Net's order and ``mid``; 1x1 each where the config pools them globally.

        Raises:
            ParameterError: Neither a map nor a hint, or both; SDXL's conditions are missing.
            HintError: The map does not fit the latents.
            BatchMismatch: Another number of rows than the latents have.
        """
        time = self._embed_time(latents, timesteps, added)
        sample = self.conv_in(latents)
        sample = sample + self._hint(sample, control_map, hint)
        skips = [sample]
        for block in self.down_blocks:
            skips.extend(block(skips[-1], time, tokens))
        mid = self.controlnet_mid_block(self.mid_block(skips[-1], time, tokens))
        outputs = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        if self.config.global_pool_conditions:
            mid = mid.mean(dim=(2, 3), keepdim=True)
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        return Residuals(skips=tuple(outputs), mid=mid)

    def encode_hint(self, control_map: Tensor) -> Tensor:
        """Encode a map once for many steps.

        Args:
            control_map: (batch, conditioning_channels, H, W), RGB in [0, 1].

        Returns:
            (batch, width, h, w), for the ``hint`` argument.

        Raises:
            HintError: It has another number of channels.
        """
        check_map(self.config, control_map, "control_map")
        if self.config.controlnet_conditioning_channel_order == "bgr":
            control_map = control_map.flip(1)
        return self.controlnet_cond_embedding(control_map)

    def _hint(self, sample: Tensor, control_map: Tensor | None, hint: Tensor | None) -> Tensor:
        if (control_map is None) == (hint is None):
            raise ParameterError(
                "control_map and hint",
                found="neither" if hint is None else "both",
                expected="one of them",
                fix="Give a map, or what encode_hint made of it.",
            )
        features = hint if control_map is None else self.encode_hint(control_map.to(sample.dtype))
        assert features is not None
        check_features(self.config, features, sample, "control_map" if hint is None else "hint")
        return features

    def _embed_time(
        self, latents: Tensor, timesteps: Tensor | float, added: Mapping[str, Tensor] | None
    ) -> Tensor:
        """(batch, 4 * width): time, and with SDXL sizes and pooled text, after the SiLU all blocks share."""
        time = self.time_embedding(time_angles(self.config, latents, timesteps))
        if self.config.addition_embed_type:
            sizes = size_conditions(self.config, added, latents.shape[0], time.dtype)
            time = time + self.add_embedding(sizes)
        return F.silu(time)

    @property
    def map_channels(self) -> int:
        return self.config.conditioning_channels

    def bind(self, bound: BoundMap, strength: Strength) -> Control:
        from controlkit.adapters.controlnet.control import ControlNetControl

        return ControlNetControl(self, bound, strength)

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    def original_state(self) -> dict[str, Tensor]:
        """Its weights as the web UIs read them: under the first implementation's names.

        They begin with ``control_model.``, as in the files of ControlNet 1.1. The layout has no place for a
        config: sizes of no published family need ``config={"num_heads": …}`` when loaded again.

        Raises:
            Unsupported: The first implementation cannot build this network.
        """
        from controlkit.adapters.controlnet.original import original_state

        return original_state(self)

    @classmethod
    def from_unet(
        cls,
        unet: nn.Module | Mapping[str, Tensor],
        config: Mapping[str, Any] | ControlNetConfig | None = None,
        *,
        hint_channels: tuple[int, ...] = (16, 32, 96, 256),
        conditioning_channels: int = 3,
    ) -> ControlNet:
        """A ControlNet to train: the encoder copied from a U-Net, the zero convolutions at zero.

        Args:
            unet: A U-Net with diffusers' parameter names, or its state dict.
            config: The U-Net's config; by default the module's own, or told by the shapes for published
                families.
            hint_channels: Widths of the hint encoder.
            conditioning_channels: Channels of the control map.

        Returns:
            In training mode, all parameters trainable, on the CPU or where the U-Net's weights are.

        Raises:
            Incomplete: Keys of the encoder are missing.
            ShapeMismatch: A weight has another shape than the config says.
        """
        from controlkit.adapters.controlnet.checkpoint import copy_encoder

        return copy_encoder(cls, unet, config, hint_channels, conditioning_channels)
