"""The few types that every kind of control fits. Read this file first.

A *control* is configuration: a module bound to its map, its strength and its schedule. It does not
change. `Control.prepare` is called once per run (one call of a pipeline) and returns an `Active`: up to
four functions, each of which adds one kind of thing to the U-Net. The engine (`controlkit.engine`) calls
them for the steps in which the control acts, applies its strength, and sums over controls. A host
(`controlkit.hosts`) turns the sum into the U-Net's own arguments. Nothing here knows diffusers.

Where a control may add (the slots):

- ``tokens``: extra prompt tokens after the text's (Uni-ControlNet's global half, style adapters);
- ``skips`` and ``mid``: to the skip connections and after the middle block (ControlNet);
- ``encoder``: inside the encoder, once per level, before its downsampler (T2I-Adapter);
- ``attention``: to the result of every cross-attention layer, before its output projection: a second
  attention with the layer's own queries (IP-Adapter);
- ``noise``: a shift of the predicted noise (guidance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from controlkit.errors import ParameterError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from controlkit.strength import Strength

Slot = Literal["tokens", "skips", "mid", "encoder", "attention", "noise"]
Branch = Literal["uncond", "cond", "image", "perturbed"]


@dataclass(frozen=True)
class Residuals:
    """What a control adds inside the U-Net.

    Args:
        skips: One tensor (rows, channels, h, w) per skip connection, in the U-Net's order (the first
            convolution first). A 1x1 map is broadcast. Empty: nothing.
        mid: Added after the middle block. Always given when ``skips`` is: a U-Net that gets skips alone
            takes them for something else.
        encoder: One tensor per level of the encoder, added before the level's skip is stored.
    """

    skips: tuple[Tensor, ...] = ()
    mid: Tensor | None = None
    encoder: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.skips) != (self.mid is not None):
            raise ParameterError(
                "Residuals",
                found=f"{len(self.skips)} skips and {'a' if self.mid is not None else 'no'} middle residual",
                expected="both or neither",
                fix="Give zeros for the one that is not wanted.",
            )

    def __bool__(self) -> bool:
        return bool(self.skips or self.encoder)


@dataclass(frozen=True)
class ExtraAttention:
    """What a control lets the cross-attention layers attend to beside the prompt.

    In each layer ``scale * softmax(q k^T / sqrt(d)) v`` is added to the attention's result, with the layer's
    own queries and heads (Ye et al. 2023, arXiv:2308.06721, equation 5).

    Args:
        keys: One tensor (rows, n, width) per cross-attention layer, in the order of `Target.attention`. One
            row serves all.
        values: Likewise, for the same ``n`` tokens.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class AttentionLayer:
    """A cross-attention layer of the U-Net.

    Args:
        width: Of its queries, all heads together.
        stride: Its pixels: latent size divided by this, rounded up.
        token_dim: Width of the tokens that its keys and values are made from.
    """

    width: int
    stride: int
    token_dim: int


@dataclass(frozen=True)
class Target:
    """What a control must fit: the U-Net, described without its framework.

    Args:
        family: ``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``.
        channels: Channels of the noisy latents alone (4 for Stable Diffusion, 3 in pixel space), without
            masks or images that some U-Nets take beside them.
        token_dim: Width of the prompt tokens; None where the U-Net reads none.
        levels: Channels of each level of the encoder.
        skip_channels: Channels of each skip connection, in the U-Net's order.
        skip_strides: Size of each: latent size divided by this, rounded up.
        mid_channels: Channels of the middle block.
        encoder_channels: Channels of each feature that the encoder takes in (the ``encoder`` slot): one per
            level, and last the middle block's, which a module may leave out (SDXL's adapters have it).
        encoder_strides: Size of each such feature: latent size divided by this, rounded up.
        encoder_positions: Number of the skip connection that carries each such feature.
        prediction: What the U-Net predicts.
        pixel_scale: Map pixels per latent pixel (8 with the usual VAE, 1 in pixel space).
        slots: Where this U-Net, as it is called here, can be added to.
        refusals: For each slot not in ``slots``, why not.
        added_dim: Width of SDXL's pooled text plus size ids; None where there are none.
        attention: The cross-attention layers: the encoder's, the decoder's, then the middle block's.
    """

    family: str
    channels: int
    token_dim: int | None
    levels: tuple[int, ...]
    skip_channels: tuple[int, ...]
    skip_strides: tuple[int, ...]
    mid_channels: int
    encoder_channels: tuple[int, ...]
    encoder_strides: tuple[int, ...]
    encoder_positions: tuple[int, ...]
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    pixel_scale: int = 8
    slots: frozenset[Slot] = frozenset({"tokens", "skips", "mid", "encoder", "attention", "noise"})
    refusals: Mapping[Slot, str] = field(default_factory=dict[Slot, str])
    added_dim: int | None = None
    attention: tuple[AttentionLayer, ...] = ()

    def describe(self) -> str:
        """One phrase for error messages, such as ``an SD 1.x U-Net (tokens 768 wide, levels 320/640/…)``."""
        names = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "embedded": "embedded"}
        tokens = f"tokens {self.token_dim} wide" if self.token_dim else "no prompt tokens"
        levels = "/".join(map(str, self.levels))
        return f"{names.get(self.family, 'another')} U-Net ({tokens}, levels {levels})"


@dataclass(frozen=True)
class RunInfo:
    """What is known when a run begins.

    Args:
        target: The U-Net.
        images: Pictures made at once: prompts times images per prompt. A U-Net call has
            ``images * len(branches)`` rows, branch by branch.
        height: Latent rows. Times ``target.pixel_scale``: pixels.
        width: Latent columns.
        steps: Number of denoising steps of this run (what is left of them for image-to-image).
        device: Where the U-Net computes.
        dtype: In what it computes.
        decode: Clean latents (images, channels, h, w) to pixels in [-1, 1], where the host has a decoder.
        encode: Pixels in [-1, 1], (n, 3, H, W), to clean latents (n, channels, h, w), without chance; None
            where the host has no encoder.
        weights: The U-Net's own weights by diffusers' names, as they are; for controls that are stored as a
            difference to them. Not to be changed. None where the host cannot give them.
        recompute: A context in which the U-Net and the decoder keep no activations for gradients but compute
            them again when they are needed (gradient checkpointing); None where the host has none.
        map_layout: How the host's own networks are given maps in memory, such as ``torch.channels_last``;
            convolutions differ by rounding with it. None: as they come.
    """

    target: Target
    images: int
    height: int
    width: int
    steps: int
    device: torch.device
    dtype: torch.dtype
    decode: Callable[[Tensor], Tensor] | None = None
    weights: Callable[[], Mapping[str, Tensor]] | None = None
    recompute: Callable[[], AbstractContextManager[None]] | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    map_layout: torch.memory_format | None = None

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of a map that fits, in pixels."""
        return self.height * self.target.pixel_scale, self.width * self.target.pixel_scale


@dataclass(frozen=True)
class Step:
    """One call of the U-Net, as controls see it.

    Args:
        index: 0-based number of the step among those of this run.
        count: Number of steps of this run.
        timestep: () or (rows,), in the model's own numbering, high is noisy.
        latents: (rows, channels, h, w), the noisy latents as the U-Net gets them: scaled to the
            variance-preserving x_t, without masks or images that come beside them.
        prompt: (rows, n, dim), the text's tokens alone; None where the U-Net reads none.
        tokens: (rows, n + extra, dim), after every control added its own.
        branches: Meaning of the equal parts that the rows fall into, in order.
        added: SDXL's pooled text (``text_embeds``) and size ids (``time_ids``), as in diffusers'
            ``added_cond_kwargs``, or both as one vector (``embedded``) where the host has them so; empty
            elsewhere.
        alpha_bar: ᾱ_t, in [0, 1], falls as noise grows; None where the scheduler's noise level is not known.
        again: The U-Net on other noisy latents (images, channels, h, w), everything else as in this call: the
            noise it predicts on the conditional rows, the same shape, with gradients where they are on. For
            `Active.shift` alone, while it runs; None elsewhere, and where the host cannot.
    """

    index: int
    count: int
    timestep: Tensor
    latents: Tensor
    prompt: Tensor | None
    tokens: Tensor | None
    branches: tuple[Branch, ...]
    added: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    alpha_bar: float | None = None
    again: Callable[[Tensor], Tensor] | None = None

    @property
    def progress(self) -> float:
        """Fraction of the run that is done when this step begins: index / count, in [0, 1)."""
        return self.index / self.count

    @property
    def images(self) -> int:
        """Rows of one branch."""
        return self.latents.shape[0] // len(self.branches)


@dataclass(frozen=True)
class Active:
    """What one control does during one run. A part that is None does nothing.

    The engine calls a part only for steps in which the control acts, and scales what it returns; the
    functions return what the module computes at scale 1. They must not change their arguments.

    Args:
        tokens: Extra tokens (rows, n, dim). ``n`` must not change within a run, except to 0. Called
            once per step in which the control acts; in the others nothing takes their place.
        residuals: Residuals for all rows of the step it is given.
        attention: What cross-attention attends to beside the prompt, for all rows of the step it is given.
            Called once per step.
        shift: Given the predicted noise (images, channels, h, w) and the step reduced to one branch,
            what to add to the noise, in the epsilon parametrisation. The engine converts it to what the
            U-Net predicts and gives it to every branch, so that it comes out of classifier-free guidance
            unchanged.
        cond_only: The module was made for the conditional half alone (ControlNets with global pooling,
            as shuffle): the other branches get nothing, whatever the mode, and nothing is weakened.
        tokens_cond_only: The same for its tokens: the function is given the step reduced to the conditional
            rows, and each other row is lengthened by the last of its own prompt's tokens, unscaled
            (T2I-Adapter's style tokens). Where a call has none but other rows (the halves run apart), the
            function is asked in their place for the number of its tokens alone.
        notes: Facts for the run's report, such as ``map resized 512x768 -> 64x96``.
        repeats: How often a step in which it acts is done: each time but the last its result is made as noisy
            as before and denoised once more (self-recurrence). The host does it, and refuses where it cannot.
        counts: Work done, for the report, such as ``{"hint": 1}``; the control updates it.
        close: Called when the run ends, however it ends.
    """

    tokens: Callable[[Step], Tensor] | None = None
    residuals: Callable[[Step], Residuals] | None = None
    attention: Callable[[Step], ExtraAttention] | None = None
    shift: Callable[[Tensor, Step], Tensor] | None = None
    cond_only: bool = False
    tokens_cond_only: bool = False
    notes: tuple[str, ...] = ()
    repeats: int = 1
    counts: dict[str, int] = field(default_factory=dict[str, int])
    close: Callable[[], None] | None = None


@runtime_checkable
class Control(Protocol):
    """A bound control: what `controlkit.attach` takes. Third parties implement these five members.

    A control is configuration and is never changed by a run, so one may be attached many times.
    """

    @property
    def name(self) -> str:
        """Short name for reports and errors."""
        ...

    @property
    def strength(self) -> Strength:
        """Scale, window, mode, block scales and mask; the engine applies them."""
        ...

    @property
    def slots(self) -> frozenset[Slot]:
        """Where it adds."""
        ...

    def check(self, target: Target) -> None:
        """Refuse a U-Net that this control does not fit.

        Raises:
            BaseMismatch: Made for another base model; the message names both.
        """
        ...

    def prepare(self, run: RunInfo) -> Active:
        """Begin one run. Must leave the control and everything it refers to as it was."""
        ...
