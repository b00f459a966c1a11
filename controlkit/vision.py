"""Pictures as CLIP sees them: the embeddings that global controls read (Uni-ControlNet, style, IP-Adapter).

The encoder is a CLIP vision model of transformers, given as an object, a folder or a hub id; nothing is
imported before one is needed, and whoever has an embedding already needs none.

Source:
    Radford et al. (2021), arXiv:2103.00020; the preprocessing is transformers' ``CLIPImageProcessor``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

from controlkit.errors import HintError, MissingExtra, ParameterError

Part = Literal["pooled", "last", "penultimate"]
"""``pooled``: projected and not normalised, (n, dim). ``last``: every token after the last layer, before
the final norm, (n, tokens, width). ``penultimate``: every token after the last layer but one."""


def embedding_of(content: Any, part: Part, encoder: Any, *, dim: int, what: str) -> Tensor:
    """The embedding of pictures, or the one that was given.

    Args:
        content: PIL, numpy, torch (n, 3, H, W) in [0, 1], a list of pictures; or an embedding: a tensor
            (n, dim) for ``pooled``, (n, tokens, dim) for the others. One row per picture, or one for all.
        part: What of the encoder's answer is wanted.
        encoder: A ``CLIPVisionModelWithProjection`` of transformers, or a folder or hub id of one.
        dim: Width that the control reads.
        what: The control's name, for errors.

    Returns:
        (n, dim) or (n, tokens, dim), float32 on the CPU, without gradients.

    Raises:
        HintError: An embedding of another shape, or one that is not finite; a picture that cannot be read.
        ParameterError: The encoder makes embeddings of another width.
        MissingExtra: transformers is not installed.
    """
    dimensions = 2 if part == "pooled" else 3
    if isinstance(content, Tensor) and content.ndim == dimensions:
        found = content.detach().float().cpu()
        if found.shape[-1] != dim or not len(found):
            shape = f"(n, {dim})" if part == "pooled" else f"(n, tokens, {dim})"
            raise HintError(
                f"{what}: embedding", found=f"shape {tuple(found.shape)}", expected=shape, code="CK-H17"
            )
        if not torch.isfinite(found).all():
            raise HintError(
                f"{what}: embedding", found="NaN or infinity", expected="finite numbers", code="CK-H13"
            )
        return found
    found = _encode(content, part, encoder)
    if found.shape[-1] != dim:
        raise ParameterError(
            f"{what}: encoder",
            found=f"one whose embeddings are {found.shape[-1]} wide",
            expected=f"{dim}",
            fix="Use the image encoder that this control was trained with.",
        )
    return found


def _encode(content: Any, part: Part, encoder: Any) -> Tensor:
    from controlkit.images import as_pictures

    model = _load(encoder) if isinstance(encoder, str) or hasattr(encoder, "__fspath__") else encoder
    parameter = next(model.parameters())
    pixels = _processor(model)(as_pictures(content), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixels.to(parameter.device, parameter.dtype), output_hidden_states=True)
    if part == "pooled":
        answer = output.image_embeds
    else:
        answer = output.last_hidden_state if part == "last" else output.hidden_states[-2]
    return cast(Tensor, answer).float().cpu()


@lru_cache(maxsize=2)
def _load(source: Any) -> Any:
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingExtra(
            "transformers", found="not installed", fix="Run: pip install transformers, or give an embedding."
        ) from error
    try:
        return CLIPVisionModelWithProjection.from_pretrained(source).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        raise ParameterError(
            "encoder",
            found=f"{source!s}, which cannot be loaded ({str(error).splitlines()[0][:120]})",
            expected="a CLIP vision model with projection: an object, a folder or a hub id",
            fix="Give a folder that holds one, or an embedding in place of the picture.",
        ) from error


def _processor(model: Any) -> Any:
    from transformers import CLIPImageProcessor

    size = int(model.config.image_size)
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
