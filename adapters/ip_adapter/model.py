"""The network of an IP-Adapter: a picture's embedding to tokens, and their keys and values for each layer.

Source:
    Ye et al. (2023), arXiv:2308.06721, section 3.2. Names and arithmetic are those of
    tencent-ailab/IP-Adapter@62e4af9d (``ip_adapter/ip_adapter.py``: ``ImageProjModel``, ``MLPProjModel``;
    ``ip_adapter/resampler.py``: ``Resampler``), so that files are read and written without renaming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.adapters.ip_adapter.config import IPAdapterConfig
from controlkit.contracts import Control
from controlkit.errors import ParameterError
from controlkit.module import ControlModule


class LinearProjection(nn.Module):
    """One vector for each picture to a few tokens."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.embedding_dim, config.num_tokens * config.cross_attention_dim)
        self.norm = nn.LayerNorm(config.cross_attention_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, embedding_dim) to (batch, num_tokens, cross_attention_dim)."""
        return self.norm(self.proj(embedding).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class MlpProjection(nn.Module):
    """Every token of the image encoder by itself."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width, dim = config.embedding_dim, config.cross_attention_dim
        self.proj = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim), nn.LayerNorm(dim)
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, n, embedding_dim) to (batch, n, cross_attention_dim)."""
        return self.proj(embedding)


class LatentAttention(nn.Module):
    """Learned queries attend to the picture's tokens and to each other."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """(batch, n, dim) and (batch, q, dim) to (batch, q, dim)."""
        latents = self.norm2(latents)
        key, value = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.to_q(latents), key, value)
        )
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _feed_forward(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, width, bias=False), nn.GELU(), nn.Linear(width, dim, bias=False)
    )


class Resampler(nn.Module):
    """Any number of the image encoder's tokens to a few, through learned queries (a Perceiver).

    Jaegle et al. (2021), arXiv:2103.03206, as in Flamingo (Alayrac et al. 2022, arXiv:2204.14198).
    """

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        dim = config.dim
        self.latents = nn.Parameter(torch.randn(1, config.num_tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(config.embedding_dim, dim)
        self.proj_out = nn.Linear(dim, config.cross_attention_dim)
        self.norm_out = nn.LayerNorm(config.cross_attention_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [LatentAttention(dim, config.dim_head, config.heads), _feed_forward(dim, config.ff_width)]
            )
            for _ in range(config.depth)
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, n, embedding_dim) to (batch, num_tokens, cross_attention_dim)."""
        latents = self.latents.expand(embedding.shape[0], -1, -1)
        x = self.proj_in(embedding)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


class LayerProjection(nn.Module):
    """Keys and values of a picture's tokens for one cross-attention layer."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(dim, width, bias=False)
        self.to_v_ip = nn.Linear(dim, width, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, n, dim) to keys and values (batch, n, width)."""
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


_PROJECTIONS: dict[str, Callable[[IPAdapterConfig], nn.Module]] = {
    "linear": LinearProjection,
    "mlp": MlpProjection,
    "resampler": Resampler,
}


class IPAdapter(ControlModule):
    """A picture as a prompt: IP-Adapter, plus, plus-face and full-face, for SD 1.x, 2.x and SDXL.

    Args:
        config: Its projection.
        widths: Of the U-Net's cross-attention layers: the encoder's, the decoder's, then the middle's.
    """

    kind: ClassVar[str] = "ip-adapter"

    def __init__(self, config: IPAdapterConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.widths = tuple(widths)
        self.image_proj = _PROJECTIONS[config.projection](config)
        # The files number attention layers, of which every second one attends to the prompt.
        self.ip_adapter = nn.ModuleDict(
            {
                str(2 * index + 1): LayerProjection(config.cross_attention_dim, width)
                for index, width in enumerate(self.widths)
            }
        )

    @property
    def base(self) -> str:
        return self.config.base

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    def original_state(self) -> dict[str, Tensor]:
        return self.state_dict()

    def tokens(self, embedding: Tensor) -> Tensor:
        """The tokens of pictures, for any loop.

        Args:
            embedding: What the image encoder says of each picture: (batch, embedding_dim), its projected
                vector, not normalised, where ``config.reads`` is ``pooled``; else (batch, n, embedding_dim),
                all its tokens after the last layer but one.

        Returns:
            (batch, m, cross_attention_dim). ``m`` is ``config.num_tokens``, or n for full face.

        Raises:
            ParameterError: Another shape.
        """
        dim, ndim = self.config.embedding_dim, 2 if self.config.reads == "pooled" else 3
        if embedding.ndim != ndim or embedding.shape[-1] != dim:
            raise ParameterError(
                "embedding",
                found=f"shape {tuple(embedding.shape)}",
                expected=f"(batch, {dim})" if ndim == 2 else f"(batch, n, {dim})",
                fix=f"Give the image encoder's {self.config.reads} answer.",
            )
        return self.image_proj(embedding)

    def forward(self, embedding: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values of pictures for every cross-attention layer.

        Args:
            embedding: As for `tokens`.

        Returns:
            Keys and values, each one tensor (batch, m, width) per layer.
        """
        return self.keys_values(self.tokens(embedding))

    def keys_values(self, tokens: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values of tokens (batch, m, cross_attention_dim), each (batch, m, width) per layer."""
        pairs = [layer(tokens) for layer in self.ip_adapter.values()]
        return tuple(key for key, _ in pairs), tuple(value for _, value in pairs)

    def on(
        self,
        image: Any,
        /,
        *,
        unconditional: Tensor | None = None,
        encoder: Any = None,
        scale: float | Callable[[float], float] | Sequence[tuple[float, float]] = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        mode: Literal["balanced", "control"] = "balanced",
        block_scales: Sequence[float] | None = None,
        mask: Any = None,
    ) -> Control:
        """Bind to a picture, a strength and a schedule: what `controlkit.attach` takes.

        Args:
            image: A picture (PIL, numpy (H, W, 3), torch (1, 3, H, W) in [0, 1]); a list with one per prompt;
                or a list of lists, with the same number of pictures for each prompt, which are all attended
                to. In place of each picture its embedding, or all in one tensor: as for `tokens`, or
                (prompts, pictures, embedding_dim). A pair of tensors: an embedding and ``unconditional``.
            unconditional: The embedding that the unconditional half of classifier-free guidance gets. Left
                out: zeros where a vector is read; where tokens are, what the encoder says of an image of
                zeros, or zeros where embeddings were given (the report says so).
            encoder: A ``CLIPVisionModelWithProjection`` of transformers, a folder or hub id of one; None: the
                published one for this width (``h94/IP-Adapter`` on the hub).
            scale: A number, a function of the fraction done in [0, 1], or points ``(fraction, scale)``.
            start: Fraction of the run at which it begins to act.
            end: Fraction at which it ends.
            mode: ``balanced``; ``control`` (acts on the conditional half alone, undiminished).
            block_scales: One factor per cross-attention layer: the encoder's, the decoder's, the middle's.
            mask: A region in [0, 1], 1 where it acts.

        Raises:
            HintError: A picture, an embedding or the mask cannot be used.
            ParameterError: An option out of its range, or an encoder that does not fit.
            MissingExtra: transformers is not installed, and pictures were given.
        """
        from controlkit.adapters.ip_adapter.control import IPAdapterControl
        from controlkit.adapters.ip_adapter.images import read_images
        from controlkit.binding import make_strength, name_of

        bound = read_images(image, unconditional, encoder, self.config, name_of(self))
        return IPAdapterControl(self, bound, make_strength(scale, start, end, mode, block_scales, mask))
