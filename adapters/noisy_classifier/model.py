"""The noisy classifier: which class a picture shows, read while it is still noisy.

What it is built from is in `config.py` and `blocks.py`, what it does during a run in `control.py`.

Source:
    Dhariwal & Nichol (2021), arXiv:2105.05233, section 4; `EncoderUNetModel` of
    openai/guided-diffusion@22e0df81 `guided_diffusion/unet.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from controlkit.adapters.noisy_classifier.blocks import (
    Norm,
    TimeEmbedding,
    attention,
    input_blocks,
    middle_block,
)
from controlkit.adapters.noisy_classifier.config import ClassifierConfig
from controlkit.binding import name_of
from controlkit.errors import HintError
from controlkit.module import ControlModule

if TYPE_CHECKING:
    from controlkit.guidance import Guidance

_HIDDEN = 2048


class AttentionPool(nn.Module):
    """The mean of all pixels asks every pixel; what it hears is the answer.

    Args:
        side: Of the feature map.
        channels: Of it.
        heads: Number of heads; queries, keys and values come first in the channels.
        outputs: Width of the answer.
    """

    def __init__(self, side: int, channels: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, outputs)."""
        pixels = x.flatten(2)
        tokens = torch.cat([pixels.mean(dim=-1, keepdim=True), pixels], dim=-1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        mixed = attention(self.qkv_proj(tokens), self.heads, heads_first=False)
        return self.c_proj(mixed[:, :, :1])[:, :, 0]


class NoisyClassifier(ControlModule):
    """Logits of a noisy picture's class. `on` makes it a control.

    Args:
        config: What to build; new weights are random.

    Attributes:
        config: The same, frozen.
        assumed: Remarks on what neither shapes nor a config told.
    """

    kind: ClassVar[str] = "classifier"

    def __init__(self, config: ClassifierConfig | None = None, assumed: Sequence[str] = ()) -> None:
        super().__init__()
        self.config = config = config or ClassifierConfig()
        self.assumed = tuple(assumed)
        self.time_embed = TimeEmbedding(config)
        self.input_blocks, channels = input_blocks(config)
        self.middle_block = middle_block(channels[-1], config)
        self.out = _head(config, channels)

    @property
    def base(self) -> str:
        """``other``: it fits whatever is denoised in its own channels, pixels in [-1, 1] when published."""
        return "other"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.config.out_channels

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Logits of every class.

        Args:
            x: (batch, in_channels, H, W), the noisy picture x_t, variance-preserving, from pixels in
                [-1, 1]. Attention pooling takes the size it was made for alone.
            timesteps: (batch,), () or (1,), in the numbering of its training, 0 to 999 when published;
                fractions too.

        Returns:
            (batch, classes), in the weights' dtype.

        Raises:
            HintError: Another number of channels, or a size that attention pooling cannot take.
        """
        if x.ndim != 4:
            raise HintError("x", found=f"shape {tuple(x.shape)}", expected="(batch, channels, height, width)")
        self.check_size(*x.shape[1:])
        time = self.time_embed(timesteps.reshape(-1).expand(x.shape[0]))
        hidden = x.to(time.dtype)
        spatial = self.config.pool.startswith("spatial")
        means: list[Tensor] = []
        for stage in (*self.input_blocks, self.middle_block):
            hidden = stage(hidden, time)
            if spatial:
                means.append(hidden.mean(dim=(2, 3)))
        return self.out(torch.cat(means, dim=-1) if spatial else hidden)

    def on(
        self,
        y: int | Sequence[int] | Tensor,
        /,
        *,
        scale: float | Callable[[float], float] | Sequence[tuple[float, float]] = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        max_norm: float | None = None,
        every: int = 1,
        mask: Any = None,
    ) -> Guidance:
        """Bind to the class that is wanted: what `controlkit.attach` takes.

        Args:
            y: The class, counted from 0, or one per picture or prompt.
            scale: Factor on the gradient of ln p(y | x_t, t): a number, a function of the fraction done, or
                points ``(fraction, scale)``. 1 is Bayes' rule; published: 0.5 to 10.
            start: Fraction of the run at which it begins to act.
            end: Fraction at which it ends.
            max_norm: Largest norm of one picture's gradient; longer ones are shortened to it.
            every: Act on every k-th step of the window.
            mask: A region in [0, 1] in which to act.

        Raises:
            ParameterError: No such class, or an option out of its range.
        """
        from controlkit.adapters.noisy_classifier.control import ClassLogProbability
        from controlkit.guidance import Guidance

        return Guidance(
            ClassLogProbability(self),
            y,
            scale=scale,
            start=start,
            end=end,
            max_norm=max_norm,
            every=every,
            mask=mask,
            name=name_of(self),
        )

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    def original_state(self) -> dict[str, Tensor]:
        """Its weights, under names that are the original's already."""
        return dict(self.state_dict())

    def check_size(self, channels: int, height: int, width: int) -> None:
        """Refuse pictures that it cannot read.

        Raises:
            HintError: Another number of channels, or a size that attention pooling cannot take.
        """
        if channels != self.config.in_channels:
            raise HintError(
                "noisy pictures",
                found=f"{channels} channels",
                expected=f"{self.config.in_channels}, as this classifier was trained on",
                fix="Give it x_t itself; latents of an autoencoder are no pictures.",
            )
        halvings = 2 ** (len(self.config.widths) - 1)
        reduced = self._reduced(height), self._reduced(width)
        if not min(reduced):
            raise HintError(
                "noisy pictures",
                found=f"{height}x{width} pixels",
                expected=f"at least {halvings} a side, as it halves them {len(self.config.widths) - 1} times",
            )
        pool = self.out[2] if self.config.pool == "attention" else None
        if isinstance(pool, AttentionPool):
            side = math.isqrt(pool.positional_embedding.shape[1] - 1)
            if reduced != (side, side):
                raise HintError(
                    "noisy pictures",
                    found=f"{height}x{width} pixels",
                    expected=f"{side * halvings} a side, the size that its attention pool was made for",
                )

    def _reduced(self, side: int) -> int:
        """A side of the last feature map: a convolution that halves rounds up, an average down."""
        learned = self.config.conv_resample and not self.config.resblock_updown
        for _ in self.config.widths[1:]:
            side = (side + learned) // 2
        return side


def _head(config: ClassifierConfig, channels: list[int]) -> nn.Sequential:
    width, classes = channels[-1], config.out_channels
    if config.pool == "adaptive":
        return nn.Sequential(
            Norm(width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, classes, 1), nn.Flatten()
        )
    if config.pool == "attention":
        assert config.image_size is not None  # the config has checked it
        side = config.image_size // 2 ** (len(config.widths) - 1)
        return nn.Sequential(Norm(width), nn.SiLU(), AttentionPool(side, width, config.heads(width), classes))
    features = sum(channels) + width
    if config.pool == "spatial":
        return nn.Sequential(nn.Linear(features, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes))
    return nn.Sequential(nn.Linear(features, _HIDDEN), Norm(_HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, classes))
