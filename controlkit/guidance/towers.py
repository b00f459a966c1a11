"""Networks that functions φ(x_t, y, t) are made of: two towers for text, and a segmenter, both noise-aware.

Both only wrap the networks that they are given, so that any architecture will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.errors import ParameterError


class NoisyTowers(nn.Module):
    """A CLIP whose image tower reads the noisy picture: the likeness of x_t to a text is their cosine.

    Args:
        image: (batch, channels, h, w) and times (batch,) to (batch, dim).
        text: Token numbers (n, length) to (n, dim).
        tokenize: Texts to token numbers.
        temperature: Divides the cosine in the softmax that it was trained with.

    Source:
        Radford et al. (2021), arXiv:2103.00020; on noisy pictures Liu et al. (2021), arXiv:2112.05744.
    """

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.image, self.text, self.tokenize = image, text, tokenize
        self.log_scale = nn.Parameter(-torch.tensor(temperature).log())

    @property
    def temperature(self) -> float:
        """What the cosine is divided by to get logits."""
        return float((-self.log_scale).exp())

    def encode_image(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy pictures (batch, channels, h, w), times (batch,) or one for all: (batch, dim) of length 1."""
        return F.normalize(self.image(x, t), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts to (n, dim) of length 1.

        Raises:
            ParameterError: No text, or something else than texts.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ParameterError("texts", found=f"{texts!r:.60}", expected="a list of at least one text")
        return F.normalize(self.text(self.tokenize(list(texts)).to(self.log_scale.device)), dim=-1)


class NoisySegmenter(nn.Module):
    """Which label each pixel of a picture has, read while it is still noisy.

    Args:
        unet: (batch, channels, h, w) and times (batch,) to (batch, labels * factor², h, w).
        factor: Pixels of the answer per pixel of the noisy picture, along each side.
    """

    def __init__(self, unet: nn.Module, factor: int = 4) -> None:
        super().__init__()
        self.unet, self.factor = unet, factor

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy pictures (batch, channels, h, w), times (batch,) or one: logits (batch, labels, H, W)."""
        return F.pixel_shuffle(self.unet(x, t), self.factor)
