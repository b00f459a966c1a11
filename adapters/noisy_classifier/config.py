"""What a network of guided-diffusion is built from: the arguments of the original constructors.

The flags of the original's scripts (``classifier_width``, ``num_channels``, …) are read too.

Source:
    openai/guided-diffusion@22e0df81 `guided_diffusion/unet.py` (`UNetModel`, `EncoderUNetModel`) and
    `script_util.py` (`create_model`, `create_classifier`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from controlkit.checkpoints.config import Keys, parse, validate
from controlkit.errors import ConfigError

T = TypeVar("T", bound="NetworkConfig")

PUBLISHED_HEAD = 64
"""Channels of an attention head in the published networks, but for one U-Net that has four heads."""
_RENAMED = {
    "classifier_width": "model_channels",
    "classifier_depth": "num_res_blocks",
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
    "classifier_resblock_updown": "resblock_updown",
    "classifier_pool": "pool",
    "num_channels": "model_channels",
}
_UNET_FLAGS = frozenset(
    (
        *("num_channels", "num_res_blocks", "channel_mult", "attention_resolutions", "resblock_updown"),
        *("num_heads", "num_heads_upsample", "num_head_channels"),
        *("use_scale_shift_norm", "use_new_attention_order"),
    )
)
"""Flags of the U-Net where a script has those of both networks."""
_REQUIRED = frozenset(
    (
        *("image_size", "in_channels", "model_channels", "out_channels"),
        *("num_res_blocks", "attention_resolutions"),
    )
)
"""Arguments without which the original constructors cannot be called."""
_UNUSED = frozenset(
    (
        *("dropout", "use_checkpoint", "use_fp16", "classifier_use_fp16", "class_cond", "learn_sigma"),
        *("diffusion_steps", "noise_schedule", "timestep_respacing", "use_kl", "predict_xstart"),
        *("rescale_timesteps", "rescale_learned_sigmas", "sigma_small"),
        *("classifier_scale", "published_classifier_scale", "classifier_path", "model_path"),
        *("clip_denoised", "use_ddim", "num_samples", "batch_size"),
    )
)
"""Flags of training and sampling. Classes and learned variances are told by shapes."""
_NONE = {"num_head_channels": (-1,), "num_heads_upsample": (-1,), "channel_mult": ("",), "image_size": (-1,)}


@dataclass(frozen=True)
class NetworkConfig:
    """What both networks have in common.

    Args:
        in_channels: Of the noisy picture.
        model_channels: Width that the levels are multiples of; of the sinusoids too.
        out_channels: Classes of a classifier; channels that a U-Net predicts.
        num_res_blocks: Per level of the encoder.
        attention_resolutions: Halvings, as 1, 2, 4, …, at which there is attention. None: nowhere but in the
            middle.
        channel_mult: Width of each level, as a multiple of ``model_channels``.
        conv_resample: Halve and double with a convolution, where residual blocks do not.
        num_heads: Of every attention, where ``num_head_channels`` is None.
        num_head_channels: Channels of a head, whatever the width.
        use_scale_shift_norm: The time embedding scales the norm as well as shifting it.
        resblock_updown: Halve and double in residual blocks.
        use_new_attention_order: Queries, keys and values first, and within each its heads.
        image_size: Side of the pictures it was made for; None where it is not known.
    """

    in_channels: int = 3
    model_channels: int = 128
    out_channels: int = 1000
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] | None = (2, 4, 8)
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    conv_resample: bool = True
    num_heads: int = 1
    num_head_channels: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    image_size: int | None = None

    def __post_init__(self) -> None:
        validate(self)
        for width in self.widths:
            if width % 32:
                raise ConfigError(
                    "config channel_mult",
                    found=f"a level of {width} channels",
                    expected="multiples of 32, the groups of its norms",
                    fix="Use the config that belongs to the weights.",
                )
        attending = [
            width
            for level, width in enumerate(self.widths)
            if 2**level in (self.attention_resolutions or ()) or level == len(self.widths) - 1
        ]
        for width in attending:
            for heads in (self.heads, self.upper_heads):
                heads(width)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(multiple * self.model_channels + 1e-6) for multiple in self.channel_mult)

    def heads(self, width: int) -> int:
        """Attention heads at this width.

        Raises:
            ConfigError: They do not divide it.
        """
        return self._heads(width, self.num_heads)

    def upper_heads(self, width: int) -> int:
        """The same in the decoder."""
        return self.heads(width)

    def _heads(self, width: int, number: int) -> int:
        size = self.num_head_channels
        if width % (size or number):
            raise ConfigError(
                "config num_head_channels" if size else "config num_heads",
                found=f"{size} channels for each head of {width}" if size else f"{number} heads of {width}",
                expected=f"a divisor of {width}",
                fix="Give num_head_channels or num_heads as the network was made with; shapes do not tell.",
            )
        return width // size if size else number

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], what: str = "config") -> T:
        """Read constructor arguments or script flags; see `parse` for the errors."""
        return parse(cls, constructor_arguments(values), Keys(_CLASSES[cls.__name__], unused=_UNUSED), what)

    def to_dict(self) -> dict[str, Any]:
        """Constructor arguments, as for a config.json."""
        entries = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in entries.items()}
        return {"_class_name": _CLASSES[type(self).__name__][0], **plain}


@dataclass(frozen=True)
class ClassifierConfig(NetworkConfig):
    """What a noisy classifier is built from; see `NetworkConfig` for the rest.

    Args:
        pool: How the last feature map becomes logits: ``attention`` by a learned query over its pixels,
            ``adaptive`` by their mean, ``spatial`` and ``spatial_v2`` by the means of all feature maps.
    """

    pool: Literal["adaptive", "attention", "spatial", "spatial_v2"] = "adaptive"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool == "attention" and self.image_size is None:
            raise ConfigError(
                "config image_size", found="none", expected="the side of the pictures, for attention pooling"
            )


@dataclass(frozen=True)
class PixelUNetConfig(NetworkConfig):
    """What a pixel U-Net is built from; see `NetworkConfig` for the rest.

    Args:
        num_classes: Classes it is conditioned on; None for an unconditional one.
        num_heads_upsample: Heads in the decoder, where not as in the encoder.
    """

    out_channels: int = 6
    num_classes: int | None = None
    num_heads_upsample: int | None = None

    def upper_heads(self, width: int) -> int:
        return self._heads(width, self.num_heads_upsample or self.num_heads)


_CLASSES = {
    "ClassifierConfig": ("NoisyClassifier", "EncoderUNetModel"),
    "PixelUNetConfig": ("PixelUNet", "UNetModel"),
}


def constructor_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the original constructors, from these or from the flags of the original's scripts.

    Flags give attention by the side of the feature map in pixels, ``"32,16,8"``; the constructor by how often
    it was halved.

    Raises:
        ConfigError: A flag that cannot be read.
    """
    entries = {_RENAMED.get(key, key): value for key, value in values.items()}
    for key, absent in _NONE.items():
        if entries.get(key) in absent and not isinstance(entries.get(key), bool):
            entries[key] = None
    if entries.get("channel_mult", ...) is None:
        del entries["channel_mult"]
    if isinstance(entries.get("channel_mult"), str):
        entries["channel_mult"] = _numbers("channel_mult", entries["channel_mult"], float)
    sides = entries.get("attention_resolutions")
    if isinstance(sides, str):
        size = entries.get("image_size")
        if not isinstance(size, int) or isinstance(size, bool):
            raise ConfigError(
                "config attention_resolutions",
                found=f"{sides!r} in pixels, without image_size",
                expected="image_size beside it",
                fix="Or give halvings as numbers, such as [2, 4, 8]; shapes tell them, too.",
            )
        pixels = _numbers("attention_resolutions", sides, int)
        if 0 in pixels:
            raise ConfigError("config attention_resolutions", found=repr(sides), expected="sides in pixels")
        entries["attention_resolutions"] = tuple(size // side for side in pixels if side <= size) or None
    if isinstance(sides, list | tuple | set | frozenset):
        entries["attention_resolutions"] = tuple(sides) or None
    return entries


def said_of(values: Mapping[str, Any], *, is_unet: bool) -> dict[str, Any]:
    """What a config says of one of the two networks, with the defaults of the call that it is written for.

    Flags of the script that samples with a classifier are those of both; ``create_classifier`` always takes
    heads of 64 channels. A whole call of a constructor that says nothing of heads means one head, as does
    ``num_head_channels=-1``.

    Args:
        values: Constructor arguments or script flags, all or some.
        is_unet: Which network it is.

    Raises:
        ConfigError: A flag that cannot be read.
    """
    entries = dict(values)
    flags = {key for key in entries if key in _RENAMED and key not in _UNET_FLAGS}
    others = flags if is_unet else _UNET_FLAGS if flags and "num_channels" in entries else frozenset[str]()
    entries = {key: value for key, value in entries.items() if key not in others}
    if "num_heads" not in entries and entries.get("num_head_channels", -1) in (-1, None):
        if flags and not is_unet:
            entries["num_head_channels"] = PUBLISHED_HEAD
        elif entries.get("num_head_channels") == -1 or (
            entries.keys() >= _REQUIRED and entries.get("pool") != "attention"
        ):
            entries["num_heads"] = 1
    return constructor_arguments(entries)


def _numbers(key: str, text: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(read(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"config {key}", found=f"{text!r:.60}", expected="numbers with commas between"
        ) from None
