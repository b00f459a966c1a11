"""What a copy of a U-Net's encoder is built from, in the words of diffusers' config.json.

ControlNet and the networks made after it share this. Only what is implemented can be written down here: a
value that would change the computation in a way that is not known is refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from controlkit.checkpoints.config import Keys, validate
from controlkit.checkpoints.encoder import ATTENDING, PLAIN
from controlkit.errors import ConfigError, Unsupported

KEYS = Keys(
    classes=(),
    neutral={
        "act_fn": ("silu", "swish"),
        "attention_type": ("default", None),
        "center_input_sample": (False, None),
        "class_embed_type": (None,),
        "conv_in_kernel": (3,),
        "cross_attention_norm": (None,),
        "dropout": (0.0,),
        "dual_cross_attention": (False, None),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None, False),
        "num_class_embeds": (None,),
        "only_cross_attention": (False, None),
        "resnet_out_scale_factor": (1.0, None),
        "resnet_skip_time_act": (False, None),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_act_fn": (None,),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    },
    unused=frozenset(
        {
            "addition_embed_type_num_heads",
            "class_embeddings_concat",
            "conv_out_kernel",
            "out_channels",
            "reverse_transformer_layers_per_block",
            "sample_size",
            "time_cond_proj_dim",
            "up_block_types",
        }
    ),
)
"""What a config may hold beside the fields of `EncoderCopyConfig`; each class adds its name."""


@dataclass(frozen=True)
class EncoderCopyConfig:
    """The config keys that diffusers' ``ControlNetModel`` and its kin share, with the former's defaults.

    Args:
        in_channels: Channels of the latents.
        conditioning_channels: Channels of the control map.
        flip_sin_to_cos: Cosines come first in the time embedding.
        freq_shift: See `controlkit.adapters.blocks.sinusoids`.
        down_block_types: One level each: ``CrossAttnDownBlock2D`` or ``DownBlock2D``.
        mid_block_type: ``UNetMidBlock2DCrossAttn``, or ``UNetMidBlock2D`` for none of its attention.
        block_out_channels: Width of each level.
        layers_per_block: Residual blocks of each level.
        downsample_padding: 1, or 0 for zeros at the right and bottom alone.
        mid_block_scale_factor: The middle block's residual sums are divided by this.
        norm_num_groups: Groups of every group norm; divides every width.
        norm_eps: Of the residual blocks' norms.
        cross_attention_dim: Width of the prompt's tokens.
        transformer_layers_per_block: Layers of each attention, one number or one per level.
        attention_head_dim: Despite its name the *number of heads*, one number or one per level.
        num_attention_heads: The same under its right name; wins where given.
        use_linear_projection: See `controlkit.adapters.blocks.SpatialTransformer`.
        addition_embed_type: ``text_time`` for SDXL's pooled text and size ids.
        addition_time_embed_dim: Width of each embedded size id.
        projection_class_embeddings_input_dim: Width of pooled text and embedded size ids together.
        upcast_attention: Kept for diffusers; with fused attention it changes nothing, there or here.
        controlnet_conditioning_channel_order: ``bgr`` for weights trained on maps in that order. Maps
            are given as RGB all the same.
        conditioning_embedding_out_channels: Widths of the hint encoder; each after the first halves the
            size.
        global_pool_conditions: Residuals are averaged over the picture (the "shuffle" networks).

    Raises:
        ConfigError: A value that cannot be built.
        Unsupported: A block type that is not implemented.
    """

    in_channels: int = 4
    conditioning_channels: int = 3
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (ATTENDING, ATTENDING, ATTENDING, PLAIN)
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    upcast_attention: bool | None = False
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False

    def __post_init__(self) -> None:
        validate(self, zero=("freq_shift", "downsample_padding", "transformer_layers_per_block"))
        if self.downsample_padding > 1:
            raise ConfigError(
                "config downsample_padding", found=str(self.downsample_padding), expected="0 or 1"
            )
        self._check_blocks()
        self._check_widths()
        if self.addition_embed_type and not self.pooled_dim:
            raise ConfigError(
                "config projection_class_embeddings_input_dim",
                found=f"{self.projection_class_embeddings_input_dim} for six ids "
                f"{self.addition_time_embed_dim} wide",
                expected="more than the six ids together, as addition_embed_type is text_time",
                fix="For SDXL they are 2816 and 256.",
            )

    def _check_blocks(self) -> None:
        for index, name in enumerate(self.down_block_types):
            if name not in (ATTENDING, PLAIN):
                raise Unsupported(
                    f"config down_block_types[{index}]",
                    found=repr(name),
                    expected=f"{ATTENDING} or {PLAIN}",
                    fix="Other block types are not implemented.",
                )
        if self.mid_block_type not in ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"):
            raise Unsupported(
                "config mid_block_type",
                found=repr(self.mid_block_type),
                expected="UNetMidBlock2DCrossAttn or UNetMidBlock2D",
                fix="Other block types are not implemented.",
            )
        levels = len(self.block_out_channels)
        per_level = {
            "down_block_types": self.down_block_types,
            "transformer_layers_per_block": self.transformer_layers_per_block,
            "attention_head_dim": self.num_attention_heads or self.attention_head_dim,
        }
        for name, value in per_level.items():
            if isinstance(value, tuple) and len(value) != levels:
                raise ConfigError(
                    f"config {name}",
                    found=f"{len(value)} entries",
                    expected=f"{levels}, one per level of block_out_channels",
                    fix="Use the config.json that came with the weights.",
                )

    def _check_widths(self) -> None:
        last = len(self.block_out_channels) - 1
        for level, width in enumerate(self.block_out_channels):
            attends = self.down_block_types[level] == ATTENDING or (
                level == last and self.mid_block_type == "UNetMidBlock2DCrossAttn"
            )
            for name, divisor in (("norm_num_groups", self.norm_num_groups), ("heads", self.heads[level])):
                if width % divisor and (attends or name != "heads"):
                    raise ConfigError(
                        f"config {name}",
                        found=f"{divisor}, which does not divide level {level}'s width {width}",
                        expected="a divisor of every width",
                        fix="Note that attention_head_dim means the number of heads.",
                    )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return self._per_level(self.num_attention_heads or self.attention_head_dim)

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer layers of each attention, by level."""
        return self._per_level(self.transformer_layers_per_block)

    @property
    def pooled_dim(self) -> int:
        """Width of SDXL's pooled text; 0 where there is none."""
        ids = 6 * (self.addition_time_embed_dim or 0)
        return max(0, (self.projection_class_embeddings_input_dim or 0) - ids) if ids else 0

    @property
    def base(self) -> str:
        """The base model this fits, told by the width of its tokens."""
        if self.addition_embed_type == "text_time":
            return "sdxl" if self.cross_attention_dim == 2048 else "other"
        return {768: "sd1", 1024: "sd2", 128: "embedded"}.get(self.cross_attention_dim, "other")

    def _per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)
