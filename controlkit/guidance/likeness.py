"""Guidance by likeness: to a text, or to a reference picture in meaning, content or style.

Source:
    Liu et al. (2021), arXiv:2112.05744, equations 5 to 9, and Radford et al. (2021), arXiv:2103.00020. There
    ln p(text | x) of a contrastive model is its cosine times exp(logit_scale), up to a normaliser over all
    texts that the gradient leaves out; so that is the weight here unless another is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from controlkit.contracts import RunInfo, Step, Target
from controlkit.errors import HintError, NotApplicable, ParameterError
from controlkit.guidance.encoders import Encoder, encoder_of
from controlkit.guidance.likelihood import BoundPhi, Likelihood, Sees, per_image
from controlkit.guidance.targets import (
    Compared,
    Once,
    certainty,
    check_count,
    one_of,
    pictures_like,
    placed,
    positive,
    precise,
    read_pictures,
    refuse_empty,
)
from controlkit.images import fit

Match = Literal["semantic", "content", "style"]
Encode = Callable[[Tensor], Tensor]


class OfEncoder(Likelihood):
    """What is asked of an encoder, which says what it sees."""

    encoder: Encoder

    @property
    def sees(self) -> Sees:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.encoder.sees

    @property
    def channels(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.encoder.channels

    def check(self, name: str, target: Target) -> None:
        refuse_empty(self.encoder.model, name)


@dataclass(frozen=True, eq=False)
class TextLikeness(OfEncoder, Compared):  # pyright: ignore[reportIncompatibleVariableOverride]
    """See `text`."""

    encoder: Encoder
    weight: float

    def read(self, y: Any) -> Tensor:
        refuse_empty(self.encoder.model, "model")
        return read_embeddings(y) if isinstance(y, Tensor) else self._encoded(y)

    def bind(self, name: str, y: Tensor, run: RunInfo) -> BoundPhi:
        self.encoder.check_run(run)
        return super().bind(name, y, run)

    def fitted(self, y: Tensor, seen: Tensor) -> Tensor:
        return placed(y, seen)

    def value(self, x: Tensor, goal: Tensor, t: Tensor) -> Tensor:
        return self.weight * cosine(self.encoder.embed(x, t), goal)

    def _encoded(self, y: Any) -> Tensor:
        texts = [y] if isinstance(y, str) else y
        good = isinstance(texts, list | tuple) and bool(texts)
        if not good or not all(isinstance(one, str) and one.strip() for one in texts):
            raise ParameterError("y", found=f"{y!r:.60}", expected="a text, or one per prompt or picture")
        with torch.no_grad():
            return precise(self.encoder.words(list(texts))).cpu()


def text(model: Any, *, processor: Any = None, weight: float | None = None) -> Likelihood:
    """Towards a text: weight · cos(image(x, t), text(y)). The target is a text, or one per prompt or picture.

    It may be embeddings (n, dim) or (dim,) as well, which a `controlkit.NoisyClip` needs. Costs one pass
    through the image encoder and back per step; the text is encoded once.

    Args:
        model: A noise-aware pair with ``encode_image(x, t)`` and ``encode_text(texts)``, such as
            `controlkit.embedded.clip()` (sees noisy latents); a `controlkit.NoisyClip` (noisy pixels); or a
            ``CLIPModel`` of transformers, which sees the predicted picture, stretched to its size.
        processor: For a ``CLIPModel``: its processor or tokenizer.
        weight: Factor on the cosine; None: the model's own exp(logit_scale), about 100, at which a scale of
            1 is Bayes' rule but for the normaliser over texts. Liu et al. used 120 to 160.

    Raises:
        ParameterError: Another model, or a weight that is not above 0.
    """
    encoder = encoder_of(model, processor)
    return TextLikeness(encoder, encoder.scale if weight is None else positive("weight", weight))


@dataclass(frozen=True, eq=False)
class ImageLikeness(OfEncoder):
    """See `image`. Called by itself, an encoder of noisy pictures wants the target noised as ``x`` is."""

    encoder: Encoder
    match: Match
    weight: float
    encode: Encode | None
    seed: int

    def __call__(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        x = precise(x)
        if self._given(y):
            return self._value(x, [placed(y, x)], t)
        rows = pictures_like(y, x) * 2 - 1 if self.encoder.sees == "image" else placed(y, x)
        return self._against(x, per_image(rows, x.shape[0]), t, t)

    def read(self, y: Any) -> Tensor | list[Tensor]:
        refuse_empty(self.encoder.model, "model")
        return read_embeddings(y) if self._given(y) else read_pictures(y)

    def bind(self, name: str, y: Tensor | list[Tensor], run: RunInfo) -> BoundPhi:
        check_count(f"{name}: y", len(y), run)
        self.encoder.check_run(run)
        if isinstance(y, Tensor) and self._given(y):
            known = Once(lambda seen: [placed(y, seen)])
            return lambda seen, times, step: (
                certainty(self.sees, step) * self._value(precise(seen), known.get(seen), times)
            )
        if self.encoder.sees == "image":
            pictures = Once(lambda seen: self._found(pictures_like(y, seen) * 2 - 1, torch.zeros(len(y))))
            return lambda seen, times, step: (
                certainty(self.sees, step) * self._value(precise(seen), pictures.get(seen), times)
            )
        encode = self._reader(name, run)
        clean = Once(lambda seen: placed(encode(fit(y, run.pixels, labels=False)[0] * 2 - 1), seen))

        def phi(seen: Tensor, times: Tensor, step: Step) -> Tensor:
            seen = precise(seen)
            rows = clean.get(seen)
            # The same noise however often a step is evaluated, another at the next.
            generator = torch.Generator().manual_seed(self.seed * 65_537 + step.index)
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            level = 1.0 if step.alpha_bar is None else step.alpha_bar
            noised = math.sqrt(level) * rows + math.sqrt(1 - level) * noise
            return self._against(seen, noised, times, times[:1].expand(len(rows)))

        return phi

    def _against(self, x: Tensor, rows: Tensor, t: Tensor, row_times: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self._found(rows, row_times)
        return self._value(x, goal, t)

    def _reader(self, name: str, run: RunInfo) -> Encode:
        """Pixels in [-1, 1] to what the encoder reads, clean."""
        if run.target.pixel_scale == 1:
            return lambda pixels: pixels
        encode = self.encode or run.encode
        if encode is None:
            raise NotApplicable(
                name,
                found="an encoder of noisy latents, and no way to turn the reference into latents",
                expected="encode=, from pixels in [-1, 1] to clean latents",
                fix="Such as lambda x: vae.encode(x).latent_dist.mean * vae.config.scaling_factor.",
            )
        return encode

    def _given(self, y: Any) -> bool:
        """Whether embeddings were given instead of pictures."""
        return self.match == "semantic" and isinstance(y, Tensor) and y.ndim < 3 and y.is_floating_point()

    def _found(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """What is compared: the embedding, or feature maps, or their Gram matrices."""
        if self.match == "semantic":
            return [self.encoder.embed(x, t)]
        maps = self.encoder.features(x, t)
        return maps if self.match == "content" else [gram(part) for part in maps]

    def _value(self, x: Tensor, goal: list[Tensor], t: Tensor) -> Tensor:
        found = self._found(x, t)
        if self.match == "semantic":
            return self.weight * cosine(found[0], goal[0])
        errors = [_relative(a, per_image(b, x.shape[0])) for a, b in zip(found, goal, strict=True)]
        return self.weight * -torch.stack(errors).mean(0)


def image(
    model: Any,
    *,
    match: Match = "semantic",
    processor: Any = None,
    weight: float | None = None,
    encode: Encode | None = None,
    seed: int = 0,
) -> Likelihood:
    """Towards a reference picture: in meaning, content (what is where) or style (textures and colours).

    The target is the picture, or one per prompt or picture. A model that reads noisy pictures sees the
    reference noised as much as the picture is, with other noise at each step. Costs a pass through the
    image encoder and back per step, and one more forward where the reference is noised.

    Args:
        model: As for `text`.
        match: ``semantic``: weight · cos of the embeddings (the target may be embeddings too). ``content``:
            -weight · |F - F_y|² / |F_y|² of the feature maps, the mean over layers. ``style``: the same of
            their Gram matrices, picture by picture. In the paper the errors are not relative to the
            reference's; here they are, so that one weight serves all networks.
        processor: For a ``CLIPModel``: its processor, for mean and deviation.
        weight: None: as for `text`; for ``content`` and ``style`` 100.
        encode: Pixels in [-1, 1] to clean latents, for models of noisy latents; None: the host's
            own, where it gives one (`RunInfo.encode`).
        seed: Of the noise on the reference.

    Raises:
        NotApplicable: ``content`` or ``style`` by towers that give no feature maps.
        ParameterError: Another model, or an option out of its range.
    """
    encoder = encoder_of(model, processor)
    match = one_of("match", match, ("semantic", "content", "style"))
    if match != "semantic" and encoder.sees == "noisy" and not _has_features(encoder):
        raise NotApplicable(
            "match",
            found=f"a {type(model).__name__}, which has no features(x, t)",
            expected="feature maps, for 'content' and 'style'",
            fix="Use match='semantic', or a NoisyClip or CLIPModel.",
        )
    if encode is not None and not callable(encode):
        raise ParameterError("encode", found=f"a {type(encode).__name__}", expected="a function of pixels")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ParameterError("seed", found=f"{seed!r:.60}", expected="a whole number from 0 to 2**32 - 1")
    default = encoder.scale if match == "semantic" else 100.0
    return ImageLikeness(
        encoder, match, default if weight is None else positive("weight", weight), encode, seed
    )


def cosine(found: Tensor, goal: Tensor) -> Tensor:
    """Of (images, dim) with one row of (n, dim) each."""
    if found.shape[1] != goal.shape[1]:
        raise HintError("y", found=f"embeddings {goal.shape[1]} wide", expected=f"{found.shape[1]}")
    return F.cosine_similarity(found, per_image(goal, found.shape[0]), dim=-1)


def gram(features: Tensor) -> Tensor:
    """(images, width, places) to (images, width, width), the mean over places."""
    return features @ features.mT / features.shape[-1]


def read_embeddings(y: Tensor) -> Tensor:
    """Embeddings (n, dim), from (n, dim) or (dim,).

    Raises:
        HintError: Another shape, none at all, or numbers that are not finite.
    """
    rows = y.detach()[None] if y.ndim == 1 else y.detach()
    if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point() or rows.is_meta:
        raise HintError("y", found=f"shape {tuple(y.shape)} of {y.dtype}", expected="embeddings (n, dim)")
    if not bool(torch.isfinite(rows).all()) or bool((rows.abs().amax(1) == 0).any()):
        raise HintError("y", found="embeddings of NaN, infinity or all 0", expected="finite directions")
    return precise(rows).cpu()


def _has_features(encoder: Encoder) -> bool:
    from controlkit.guidance.encoders import Towers

    return not isinstance(encoder, Towers) or callable(getattr(encoder.model, "features", None))


def _relative(found: Tensor, goal: Tensor) -> Tensor:
    return ((found - goal) ** 2).flatten(1).sum(1) / (goal**2).flatten(1).sum(1).clamp_min(1e-12)
