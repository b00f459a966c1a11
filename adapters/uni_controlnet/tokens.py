"""The global half of Uni-ControlNet: the embedding of a content image in, extra prompt tokens out.

What they do during a run is in `control.py`; how a picture becomes an embedding in `controlkit.vision`.

Source:
    Zhao et al. (2023), arXiv:2305.16322, section 3.3; the operations and parameter names of
    ShihaoZhaoZSH/Uni-ControlNet@4da003c3 `models/global_adapter.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from controlkit.adapters.blocks.transformer import GatedLinear
from controlkit.adapters.uni_controlnet.config import TokensConfig
from controlkit.errors import HintError


class _FeedForward(nn.Module):
    """A gated layer and a linear one; between them the original has a dropout, which has no weights."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(inputs, inner), nn.Identity(), nn.Linear(inner, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ContentTokens(nn.Module):
    """Embedding (batch, dim) to tokens (batch, count, dim).

    The original's demonstration leaves its dropout switched on, so that its pictures vary by chance. Here
    there is none.

    Args:
        config: What to build.
    """

    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.config = config
        self.norm1 = nn.LayerNorm(config.dim)
        self.ff1 = _FeedForward(config.dim, config.inner[0], config.hidden)
        self.norm2 = nn.LayerNorm(config.hidden)
        self.ff2 = _FeedForward(config.hidden, config.inner[1], config.count * config.dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """Tokens at strength 1.

        Args:
            embedding: (batch, dim), CLIP's image embedding: projected, not normalised. All zeros stand for
                an absent content image, and give tokens that are not zero.

        Returns:
            (batch, count, dim), to be put after the text's tokens.

        Raises:
            HintError: Another shape.
        """
        if embedding.ndim != 2 or embedding.shape[-1] != self.config.dim:
            raise HintError(
                "embedding",
                found=f"shape {tuple(embedding.shape)}",
                expected=f"(batch, {self.config.dim})",
                fix="Give the projected embedding of the CLIP model that this was trained with.",
                code="CK-H17",
            )
        tokens = self.ff2(self.norm2(self.ff1(self.norm1(embedding))))
        return tokens.reshape(len(embedding), self.config.count, self.config.dim)
