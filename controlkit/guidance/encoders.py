"""Encoders of pictures and texts, of whatever origin, as `text` and `image` need them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from controlkit.contracts import RunInfo
from controlkit.errors import ControlKitWarning, HintError, NotApplicable, ParameterError
from controlkit.guidance.depths import Preparing
from controlkit.guidance.likelihood import Sees
from controlkit.guidance.targets import place_of, precise, processing

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP_SCALE = 100.0
"""exp(logit_scale) of every published CLIP."""


class Encoder(Protocol):
    """What `text` and `image` need of a model."""

    model: Any
    sees: Sees
    channels: int | None
    scale: float
    """What a cosine is multiplied by to get the model's own logits."""

    def embed(self, x: Tensor, t: Tensor) -> Tensor:
        """(images, channels, h, w) to (images, dim), of length 1."""
        ...

    def features(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Feature maps, (images, width, places) each.

        Raises:
            NotApplicable: The model does not give them.
        """
        ...

    def words(self, texts: Sequence[str]) -> Tensor:
        """Texts to (n, dim), of length 1.

        Raises:
            NotApplicable: The model has no text encoder.
        """
        ...

    def check_run(self, run: RunInfo) -> None:
        """Refuse sizes that the model cannot read."""
        ...


@dataclass(frozen=True, eq=False)
class Towers:
    """A noise-aware pair: ``encode_image(x, t)``, ``encode_text(texts)``, perhaps ``features(x, t)``."""

    model: Any
    sees: Sees = "noisy"

    @property
    def channels(self) -> int | None:
        config = getattr(getattr(self.model, "image", None), "config", None)
        found = getattr(config, "in_channels", None)
        return found if isinstance(found, int) else None

    @property
    def scale(self) -> float:
        found = getattr(self.model, "temperature", None)
        return 1 / float(found) if isinstance(found, int | float) and found > 0 else _CLIP_SCALE

    def embed(self, x: Tensor, t: Tensor) -> Tensor:
        place, dtype = place_of(self.model, x)
        return F.normalize(_rows(self.model.encode_image(x.to(place, dtype), t.to(place)), x), dim=-1)

    def features(self, x: Tensor, t: Tensor) -> list[Tensor]:
        if not callable(getattr(self.model, "features", None)):
            raise _without_features(self.model, "no features(x, t)")
        place, dtype = place_of(self.model, x)
        return [precise(part).to(x.device).flatten(2) for part in self.model.features(x.to(place, dtype), t)]

    def words(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(precise(self.model.encode_text(list(texts))), dim=-1)

    def check_run(self, run: RunInfo) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Published:
    """`controlkit.NoisyClip`: pixels alone, features, and no text encoder."""

    model: Any
    sees: Sees = "noisy"
    channels: int | None = 3
    scale: float = _CLIP_SCALE

    def embed(self, x: Tensor, t: Tensor) -> Tensor:
        return F.normalize(self._all(x, t)[-1], dim=-1)

    def features(self, x: Tensor, t: Tensor) -> list[Tensor]:
        return [part.flatten(2) for part in self._all(x, t)[:-1]]

    def words(self, texts: Sequence[str]) -> Tensor:
        raise NotApplicable(
            "text",
            found="an image encoder alone",
            expected=f"embeddings (n, {self.model.config.embed_dim}) of the texts",
            fix="Encode them with the text encoder of the CLIP that this one was made from.",
        )

    def check_run(self, run: RunInfo) -> None:
        self.model.check_size(torch.empty(1, run.target.channels, run.height, run.width, device="meta"))

    def _all(self, x: Tensor, t: Tensor) -> list[Tensor]:
        place, dtype = place_of(self.model, x)
        return [precise(part).to(x.device) for part in self.model(x.to(place, dtype), t.to(place))]


@dataclass(frozen=True, eq=False)
class Pixels:
    """A ``CLIPModel`` of transformers, which reads clean pictures."""

    model: Any
    tokenizer: Any
    preparing: Preparing
    sees: Sees = "image"
    channels: int | None = 3

    @property
    def scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())

    def embed(self, x: Tensor, t: Tensor) -> Tensor:
        return F.normalize(_rows(self.model.visual_projection(self._seen(x).pooler_output), x), dim=-1)

    def features(self, x: Tensor, t: Tensor) -> list[Tensor]:
        layers = self._seen(x, output_hidden_states=True).hidden_states[1:]
        return [precise(layer[:, 1:].mT).to(x.device) for layer in layers]

    def words(self, texts: Sequence[str]) -> Tensor:
        if self.tokenizer is None:
            raise ParameterError(
                "tokenizer",
                found="none",
                expected="the tokenizer or processor of this CLIP",
                fix="Pass processor=CLIPProcessor.from_pretrained(...), or embeddings as the target.",
            )
        device = place_of(self.model, torch.empty(0))[0]
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        if tokens["input_ids"].shape[1] > limit:
            warnings.warn(f"a text of more than {limit} tokens is cut", ControlKitWarning, stacklevel=2)
            tokens = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
        given = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        found = self.model.text_projection(self.model.text_model(**given).pooler_output)
        return F.normalize(precise(found), dim=-1)

    def check_run(self, run: RunInfo) -> None:
        pass

    def _seen(self, x: Tensor, **options: Any) -> Any:
        place, dtype = place_of(self.model, x)
        return self.model.vision_model(pixel_values=self.preparing(x).to(place, dtype), **options)


def encoder_of(model: Any, processor: Any) -> Encoder:
    """The encoder that a model is.

    Raises:
        ParameterError: None of those that are known.
    """
    from controlkit.adapters.noisy_clip import NoisyClip

    if isinstance(model, NoisyClip):
        return cast(Encoder, Published(model))
    if callable(getattr(model, "encode_image", None)) and callable(getattr(model, "encode_text", None)):
        return cast(Encoder, Towers(model))
    parts = ("vision_model", "visual_projection", "text_model", "text_projection", "logit_scale")
    if isinstance(model, nn.Module) and all(hasattr(model, part) for part in parts):
        side = cast(Any, model).config.vision_config.image_size
        mean, std, _ = (None, None, None) if processor is None else processing(processor)
        tokenizer = getattr(processor, "tokenizer", processor if callable(processor) else None)
        preparing = Preparing((side, side), mean or _MEAN, std or _STD)
        return cast(Encoder, Pixels(model, tokenizer, preparing))
    raise ParameterError(
        "model",
        found=f"a {type(model).__name__}",
        expected="towers with encode_image(x, t) and encode_text(texts), a NoisyClip, or a CLIPModel of "
        "transformers",
        fix="Such as ck.embedded.clip().",
    )


def _rows(found: Any, x: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[0] != x.shape[0]:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise HintError("model", found=f"embeddings of {kind}", expected=f"({x.shape[0]}, dim)")
    return precise(found).to(x.device)


def _without_features(model: Any, what: str) -> NotApplicable:
    return NotApplicable(
        "match",
        found=f"a {type(model).__name__} with {what}",
        expected="feature maps, for 'content' and 'style'",
        fix="Use match='semantic', or a model that gives them.",
    )
