"""CLIP's modified ResNet, whose every norm the timestep scales and shifts.

What can be built is in `config.py`, what it does during a run in `control.py`.

Source:
    Liu et al. (2021), arXiv:2112.05744, section 3.3; `CLIP_gd` of xh-liu/SDG_code@62fb2725
    `sdg/clip_guidance.py`, around `ModifiedResNet` of openai/CLIP `clip/model.py` (Radford et al. 2021,
    arXiv:2103.00020). Parameter names are those of the former. Batch norms are frozen: they use the means
    and variances that are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.blocks import sinusoids
from controlkit.adapters.noisy_clip.config import HEAD, NoisyClipConfig
from controlkit.binding import name_of
from controlkit.errors import HintError
from controlkit.module import ControlModule

if TYPE_CHECKING:
    from controlkit.guidance import Guidance

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

Modulations = Iterator[tuple[Tensor, Tensor]]
"""Scale and shift of each norm, (batch, channels, 1, 1) each, in the order of the computation."""


class FrozenNorm(nn.Module):
    """Batch normalisation with stored mean and variance; a counter of training steps is not kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, modulations: Modulations | None = None) -> Tensor:
        """The same shape, scaled and shifted by the next of the modulations where there are any."""
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        if modulations is None:
            return x
        scale, shift = next(modulations)
        return x * (1 + scale) + shift


class Bottleneck(nn.Module):
    """Three convolutions with a shortcut; a stride is an average, after the second and on the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = FrozenNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = FrozenNorm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = FrozenNorm(4 * width)
        changes = stride > 1 or inputs != 4 * width
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, bias=False), FrozenNorm(4 * width))
            if changes
            else None
        )

    def forward(self, x: Tensor, modulations: Modulations) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x), modulations))
        hidden = F.relu(self.bn2(self.conv2(hidden), modulations))
        hidden = self.bn3(self.conv3(self._smaller(hidden)), modulations)
        return F.relu(hidden + (x if self.downsample is None else self.downsample(self._smaller(x))))

    def _smaller(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """The mean of all pixels asks the pixels and itself; what it hears is the embedding.

    Args:
        side: Of the feature map.
        channels: Of it.
        outputs: Width of the embedding.
    """

    def __init__(self, side: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD)
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, outputs)."""
        pixels = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(mixed.transpose(1, 2).flatten(1))


class NoisyClip(ControlModule):
    """A picture's features and embedding, read while it is still noisy. `on` makes it a control.

    Args:
        config: What to build; new weights are random.

    Attributes:
        config: The same, frozen.
    """

    kind: ClassVar[str] = "noisy-clip"

    def __init__(self, config: NoisyClipConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NoisyClipConfig()
        half, width = config.width // 2, config.width
        stages = [_stage(width, stage, blocks) for stage, blocks in enumerate(config.layers)]
        # Activations and the average keep their places in the row for the names.
        self.visual_frozen = nn.ModuleList(
            (
                *(nn.Conv2d(3, half, 3, 2, 1, bias=False), FrozenNorm(half), nn.ReLU()),
                *(nn.Conv2d(half, half, 3, padding=1, bias=False), FrozenNorm(half), nn.ReLU()),
                *(nn.Conv2d(half, width, 3, padding=1, bias=False), FrozenNorm(width), nn.ReLU()),
                *(nn.AvgPool2d(2), *stages[:3]),
            )
        )
        self.layer4 = stages[3]
        self.attn_pool = AttentionPool(config.image_size // 32, config.features, config.embed_dim)
        self.time_embed = nn.Sequential(
            nn.Linear(config.time_channels, config.time_dim),
            nn.ReLU(),
            nn.Linear(config.time_dim, config.time_dim),
        )
        self.emb_layers = nn.Sequential(nn.ReLU(), nn.Linear(config.time_dim, 2 * sum(config.modulated)))

    @property
    def base(self) -> str:
        """``other``: it reads noisy pixels in [-1, 1]."""
        return "other"

    def forward(self, x: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Features of noisy pictures.

        Args:
            x: (batch, 3, H, W), the noisy picture x_t, variance-preserving, from pixels in [-1, 1]; both
                sides ``config.image_size``.
            timesteps: (batch,), () or (1,), 0 to 999.

        Returns:
            Five feature maps, after the stem and each stage, (batch, width, H/4, W/4) to
            (batch, 32 width, H/32, W/32), and the embedding (batch, embed_dim), not normalised; in the
            weights' dtype.

        Raises:
            HintError: Another size.
        """
        self.check_size(x)
        modulations = self._modulations(timesteps.reshape(-1).expand(x.shape[0]))
        dtype = self.time_embed[0].weight.dtype
        mean, std = (x.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        hidden = (((x + 1) / 2 - mean) / std).to(cast(torch.dtype, dtype))
        layers = self.visual_frozen
        for place in (0, 3, 6):
            hidden = F.relu(layers[place + 1](layers[place](hidden), modulations))
        found = [F.avg_pool2d(hidden, 2)]
        for stage in (layers[10], layers[11], layers[12], self.layer4):
            hidden = found[-1]
            for block in cast(nn.ModuleList, stage):
                hidden = block(hidden, modulations)
            found.append(hidden)
        return [*found, self.attn_pool(found[-1])]

    def on(
        self,
        *,
        text: Tensor | None = None,
        image: Any = None,
        text_weight: float = 1.0,
        image_weight: float = 1.0,
        match: Literal["semantic", "style"] = "semantic",
        scale: float | Callable[[float], float] | Sequence[tuple[float, float]] = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        max_norm: float | None = None,
        every: int = 1,
        mask: Any = None,
        seed: int = 0,
    ) -> Guidance:
        """Bind to a text, a reference picture, or both: what `controlkit.attach` takes.

        Args:
            text: Embeddings (n, embed_dim) of the texts, one for all pictures or one per prompt or picture,
                from the text encoder of the CLIP that this one was made from (RN50x16 when published).
            image: Reference pictures, one or one per prompt or picture, stretched to the size of the run. At
                each step they are noised as much as the picture is, with fresh noise.
            text_weight: Of the text's cosine similarity; published 160, with ``scale`` 1.
            image_weight: Of the reference's; published 100.
            match: What of the reference counts: ``semantic``, its embedding; ``style``, the Gram matrices of
                its feature maps (in the original over the batch as a whole, and so here).
            scale: Factor on the whole gradient: a number, a function of the fraction done, or points.
            start: Fraction of the run at which it begins to act.
            end: Fraction at which it ends.
            max_norm: Largest norm of one picture's gradient; longer ones are shortened to it.
            every: Act on every k-th step of the window.
            mask: A region in [0, 1] in which to act.
            seed: Of the noise on the reference.

        Raises:
            HintError: An embedding of another width, or a picture that cannot be read.
            ParameterError: Neither text nor image, or an option out of its range.
        """
        from controlkit.adapters.noisy_clip.control import ClipLikeness, Wanted
        from controlkit.guidance import Guidance

        wanted = Wanted.read(self.config, text, image, text_weight, image_weight, match, seed)
        options = {"scale": scale, "start": start, "end": end, "max_norm": max_norm, "every": every}
        return Guidance(ClipLikeness(self), wanted, mask=mask, name=name_of(self), **options)

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    def original_state(self) -> dict[str, Tensor]:
        """Its weights as the original loads them, with its counters of training steps, at 0."""
        counters = {
            f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.int64)
            for name, part in self.named_modules()
            if isinstance(part, FrozenNorm)
        }
        return {**self.state_dict(), **counters}

    def check_size(self, x: Tensor) -> None:
        """Refuse pictures that it cannot read.

        Raises:
            HintError: Another number of channels, or another size.
        """
        side = self.config.image_size
        if x.ndim != 4 or x.shape[1] != 3 or any(length // 32 != side // 32 for length in x.shape[2:]):
            raise HintError(
                "noisy pictures", found=f"shape {tuple(x.shape)}", expected=f"(batch, 3, {side}, {side})"
            )

    def _modulations(self, timesteps: Tensor) -> Modulations:
        first = self.time_embed[0]
        assert isinstance(first, nn.Linear)
        time = self.time_embed(sinusoids(timesteps, first.in_features).to(first.weight.dtype))
        channels = self.config.modulated
        parts = self.emb_layers(time)[:, :, None, None].split([2 * count for count in channels], dim=1)
        return iter([cast(tuple[Tensor, Tensor], part.chunk(2, dim=1)) for part in parts])


def _stage(width: int, stage: int, blocks: int) -> nn.ModuleList:
    wide = width << stage
    inputs = width if stage == 0 else 2 * wide
    first = Bottleneck(inputs, wide, 2 if stage else 1)
    return nn.ModuleList([first, *(Bottleneck(4 * wide, wide, 1) for _ in range(blocks - 1))])
