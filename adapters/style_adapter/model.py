"""The style adapter: every token of CLIP's view of a picture in, a few prompt tokens out.

What it does during a run is in `control.py`.

Source:
    Mou et al. (2023), arXiv:2302.08453; operations and parameter names, misspellings included, of
    TencentARC/T2I-Adapter@16bba674 `ldm/modules/encoders/adapter.py` (`StyleAdapter`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from controlkit.adapters.blocks.clip import ClipLayer, WideNorm
from controlkit.adapters.style_adapter.config import StyleAdapterConfig
from controlkit.errors import HintError
from controlkit.module import ControlModule

if TYPE_CHECKING:
    from controlkit.contracts import Control

ENCODER = "openai/clip-vit-large-patch14"
"""The image encoder that the published style adapter was trained with."""


class StyleAdapter(ControlModule):
    """A network that makes prompt tokens from a picture, once per run.

    Args:
        config: What to build; new weights are random.

    Attributes:
        config: The same, frozen.
    """

    kind: ClassVar[str] = "style-adapter"

    def __init__(self, config: StyleAdapterConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StyleAdapterConfig()
        deviation = config.width**-0.5
        layers = (ClipLayer(config.width, config.num_head) for _ in range(config.n_layes))
        self.transformer_layes = nn.Sequential(*layers)
        self.style_embedding = nn.Parameter(torch.randn(1, config.num_token, config.width) * deviation)
        self.ln_post = WideNorm(config.width)
        self.ln_pre = WideNorm(config.width)
        self.proj = nn.Parameter(torch.randn(config.width, config.context_dim) * deviation)

    @property
    def base(self) -> str:
        """``sd1``, ``sd2``, ``sdxl`` or ``other``, told by the width of its tokens."""
        return self.config.base

    def forward(self, clip_tokens: Tensor) -> Tensor:
        """The prompt tokens of pictures, at scale 1.

        The learned tokens follow the picture's; after the transformer they are what is read.

        Args:
            clip_tokens: (batch, n, width), every token of a CLIP vision model after its last layer and
                before its final norm (transformers' ``last_hidden_state``), in the weights' dtype; n is
                257 for a ViT-L/14 at 224 pixels.

        Returns:
            (batch, num_token, context_dim).

        Raises:
            HintError: Another shape.
        """
        if clip_tokens.ndim != 3 or clip_tokens.shape[-1] != self.config.width:
            raise HintError(
                "clip_tokens",
                found=f"shape {tuple(clip_tokens.shape)}",
                expected=f"(batch, tokens, {self.config.width})",
                fix="Give the last_hidden_state of the image encoder that it was trained with.",
                code="CK-H17",
            )
        learned = self.style_embedding.expand(clip_tokens.shape[0], -1, -1)
        x = self.ln_pre(torch.cat([clip_tokens, learned], dim=1))
        x = self.transformer_layes(x)
        return self.ln_post(x[:, -self.config.num_token :]) @ self.proj

    def on(
        self,
        image: Any,
        /,
        *,
        encoder: Any = None,
        scale: float | Callable[[float], float] | Sequence[tuple[float, float]] = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> Control:
        """Bind to a picture whose style is wanted: what `controlkit.attach` takes.

        The tokens go after the prompt's in the conditional half of classifier-free guidance; the other
        half gets as many of its own last ones once more, so that both have one length. In steps outside
        the window, or whose scale is 0, there are no tokens at all.

        Args:
            image: A picture (PIL, numpy, torch (n, 3, H, W) in [0, 1]) or a list with one per prompt; or
                an encoder's tokens, (n, tokens, width).
            encoder: A CLIP vision model of transformers, or a folder or hub id of one; None:
                ``openai/clip-vit-large-patch14``. Not needed for tokens.
            scale: A number, a function of the fraction done in [0, 1], or points ``(fraction, scale)``.
            start: Fraction of the run at which it begins to act.
            end: Fraction at which it ends.

        Raises:
            HintError: The picture or the tokens cannot be used.
            ParameterError: An option out of its range, or an encoder of another width.
            MissingExtra: transformers is not installed, and a picture was given.
        """
        from controlkit.adapters.style_adapter.control import StyleAdapterControl
        from controlkit.binding import make_strength, name_of
        from controlkit.vision import embedding_of

        strength = make_strength(scale, start, end, "balanced", None, None)
        given = encoder if encoder is not None else ENCODER
        tokens = embedding_of(image, "last", given, dim=self.config.width, what=name_of(self))
        return StyleAdapterControl(self, tokens, strength)

    def config_entries(self) -> dict[str, Any]:
        return self.config.to_dict()

    def original_state(self) -> dict[str, Tensor]:
        """Its weights; the original's names are its own. The head count is not in them."""
        return dict(self.state_dict())
