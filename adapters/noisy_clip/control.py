"""What a noisy CLIP does during a run: likeness to a text or to a reference picture, as guidance.

Source:
    Liu et al. (2021), arXiv:2112.05744, equations 5 to 9; xh-liu/SDG_code@62fb2725 `sdg/guidance.py` and
    `cond_fn_sdg` of `scripts/sample.py`. Likeness is a cosine, without a softmax or a temperature.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from controlkit.adapters.noisy_clip.config import NoisyClipConfig
from controlkit.binding import refuse_meta
from controlkit.contracts import RunInfo, Step, Target
from controlkit.errors import BatchMismatch, ParameterError
from controlkit.guidance.likelihood import BoundPhi, Likelihood, per_image
from controlkit.images import as_map, fit
from controlkit.vision import embedding_of

if TYPE_CHECKING:
    from controlkit.adapters.noisy_clip.model import NoisyClip

Match = Literal["semantic", "style"]
_STYLE_SCALE = 1e10
"""Of the style term, as in the original, where Gram matrices of normalised maps are this small."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the pictures should be like.

    Args:
        text: Embeddings (n, embed_dim), or None.
        image: Reference pictures (n, 3, H, W): in [0, 1] as they were read, and noised from [-1, 1] where
            `ClipLikeness` gets them; or None.
        text_weight: Of the text's likeness.
        image_weight: Of the reference's.
        match: What of the reference counts.
        seed: Of the reference's noise.
    """

    text: Tensor | None
    image: Tensor | None
    text_weight: float
    image_weight: float
    match: Match
    seed: int

    @classmethod
    def read(
        cls,
        config: NoisyClipConfig,
        text: Any,
        image: Any,
        text_weight: float,
        image_weight: float,
        match: Match,
        seed: int,
    ) -> Wanted:
        """Check the arguments of `NoisyClip.on`, whose meaning they have.

        Raises:
            ParameterError: Neither text nor image, or an option out of its range.
            HintError: An embedding or a picture that cannot be used.
        """
        if text is None and image is None:
            raise ParameterError("on", found="neither text nor image", expected="one of them, or both")
        if match not in get_args(Match):
            raise ParameterError("match", found=repr(match), expected="'semantic' or 'style'")
        for name, weight in (("text_weight", text_weight), ("image_weight", image_weight)):
            real = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not real or not math.isfinite(weight):
                raise ParameterError(name, found=repr(weight), expected="a finite number")
        if text is not None and not isinstance(text, Tensor):
            raise ParameterError(
                "text",
                found=f"a {type(text).__name__}",
                expected=f"embeddings (n, {config.embed_dim})",
                fix="Encode the text with the text encoder of the CLIP that this encoder was made from.",
            )
        embedding = (
            None if text is None else embedding_of(text, "pooled", None, dim=config.embed_dim, what="text")
        )
        pictures = None
        if image is not None:
            rows = as_map(image, what="image")
            pictures = fit(rows, (config.image_size, config.image_size), labels=False)[0]
        return cls(embedding, pictures, text_weight, image_weight, match, seed)


@dataclass(frozen=True, eq=False)
class ClipLikeness(Likelihood):
    """phi(x, y, t): weighted likeness of noisy pictures to a text and to a reference, noised as they are.

    Costs one pass through the encoder and back, one more pass with a reference.

    Args:
        encoder: The image encoder. It stays on its own device and in its own dtype.
    """

    encoder: NoisyClip

    def __call__(self, x: Tensor, y: Wanted, t: Tensor) -> Tensor:
        """(images, 3, H, W), what is wanted, times (images,) to (images,)."""
        device = next(self.encoder.parameters()).device
        times = t.to(device)
        found = [part.float() for part in self.encoder(x.to(device), times)]
        total = x.new_zeros(x.shape[0], device=device)
        if y.text is not None:
            text = per_image(y.text.to(device), x.shape[0])
            total = total + y.text_weight * F.cosine_similarity(found[-1], text, dim=-1)
        if y.image is not None:
            with torch.no_grad():
                goal = [part.float() for part in self.encoder(y.image.to(device), times)]
            near = (
                F.cosine_similarity(found[-1], goal[-1], dim=-1)
                if y.match == "semantic"
                else style_likeness(found[:-1], goal[:-1]) / x.shape[0]
            )
            total = total + y.image_weight * near
        return total.to(x.device)

    @property
    def channels(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 3

    def check(self, name: str, target: Target) -> None:
        refuse_meta(self.encoder, name)

    def bind(self, name: str, y: Wanted, run: RunInfo) -> BoundPhi:
        for what in ("text", "image"):
            given: Tensor | None = getattr(y, what)
            if given is not None and run.images % len(given):
                raise BatchMismatch(
                    f"{name}: {what}",
                    found=f"{len(given)} for {run.images} pictures",
                    expected=f"one, or a number that divides {run.images}: one per prompt or per picture",
                )
        self.encoder.check_size(torch.empty(1, run.target.channels, run.height, run.width, device="meta"))
        generator = torch.Generator().manual_seed(y.seed)

        def likeness(x: Tensor, times: Tensor, step: Step) -> Tensor:
            wanted = y
            if y.image is not None and step.alpha_bar is not None:
                clean = per_image(y.image * 2 - 1, x.shape[0])
                noise = torch.randn(clean.shape, generator=generator)
                noised = math.sqrt(step.alpha_bar) * clean + math.sqrt(1 - step.alpha_bar) * noise
                wanted = dataclasses.replace(y, image=noised)
            return self(x, wanted, times)

        return likeness


def style_likeness(found: list[Tensor], goal: list[Tensor]) -> Tensor:
    """How alike the Gram matrices of feature maps are: 0 when equal, else below.

    Args:
        found: Feature maps (batch, channels, h, w).
        goal: The same of the reference.

    Returns:
        (), for the batch as a whole: in the original the matrices mix its pictures.
    """
    errors = [F.mse_loss(_gram(a), _gram(b)) for a, b in zip(found, goal, strict=True)]
    return -torch.stack(errors).sum() * _STYLE_SCALE / len(errors)


def _gram(features: Tensor) -> Tensor:
    flat = features.flatten(0, 1).flatten(1) / math.sqrt(features.numel())
    return flat @ flat.T
