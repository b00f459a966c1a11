"""Pictures as CLIP sees them: the embeddings that global controls read (Uni-ControlNet, style, IP-Adapter).

The encoder is a CLIP vision model of transformers, given as an object, a folder or a hub id; nothing is
imported before one is needed, and whoever has an embedding already needs none.

Source:
    Radford et al. (2021), arXiv:2103.00020; the preprocessing is that of transformers'
    ``CLIPImageProcessor`` with Pillow's resizing, as the models were trained with: the short side to the
    encoder's size (bicubic), the middle square, mean and deviation of CLIP's training pictures.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from controlkit.errors import HintError, MissingExtra, ParameterError

Part = Literal["pooled", "last", "penultimate"]
"""``pooled``: projected and not normalised, (n, dim). ``last``: every token after the last layer, before
the final norm, (n, tokens, width). ``penultimate``: every token after the last layer but one."""

_EXPECTED = "a CLIP vision model with projection: an object, a folder or a hub id"


def embedding_of(content: Any, part: Part, encoder: Any, *, dim: int, what: str) -> Tensor:
    """The embedding of pictures, or the one that was given.

    Args:
        content: PIL, numpy, torch (n, 3, H, W) in [0, 1], a list of pictures; or an embedding: a tensor
            (n, dim) or (dim,) for ``pooled``, (n, tokens, dim) for the others. One row per picture, or one
            for all. A picture as a tensor has four dimensions, so that it is told from an embedding.
        part: What of the encoder's answer is wanted.
        encoder: A ``CLIPVisionModelWithProjection`` of transformers, or a folder or hub id of one.
        dim: Width that the control reads.
        what: The control's name, for errors.

    Returns:
        (n, dim) or (n, tokens, dim), float32 on the CPU, without gradients.

    Raises:
        HintError: An embedding of another shape, or one that is not finite; a picture that cannot be read.
        ParameterError: No encoder, or one that makes embeddings of another width.
        MissingExtra: transformers is not installed.
    """
    if part == "pooled" and isinstance(content, Tensor) and content.shape == (dim,):
        content = content[None]
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


def blank_embedding(part: Part, encoder: Any) -> Tensor:
    """What an encoder says of an image of zeros, after preprocessing (IP-Adapter plus is trained with it).

    Args:
        part: What of the encoder's answer is wanted.
        encoder: As for `embedding_of`.

    Returns:
        (1, dim) or (1, tokens, dim), float32 on the CPU, without gradients.

    Raises:
        ParameterError: The encoder cannot be loaded.
        MissingExtra: transformers is not installed.
    """
    model = load_encoder(encoder)
    size = int(model.config.image_size)
    return _answer(model, torch.zeros(1, 3, size, size), part)


def load_encoder(encoder: Any, subfolder: str = "") -> Any:
    """The encoder itself, loaded once where a folder or hub id names it; an object is given back.

    Args:
        encoder: A ``CLIPVisionModelWithProjection`` of transformers, or a folder or hub id of one.
        subfolder: Of the folder or repository.

    Raises:
        ParameterError: It cannot be loaded, or is none.
        MissingExtra: transformers is not installed.
    """
    if isinstance(encoder, str) or hasattr(encoder, "__fspath__"):
        return _load(encoder, subfolder)
    if not isinstance(encoder, nn.Module) or not hasattr(getattr(encoder, "config", None), "image_size"):
        raise ParameterError(
            "encoder",
            found=f"a {type(encoder).__name__}",
            expected=_EXPECTED,
            fix="Give one, or an embedding in place of the picture.",
        )
    return encoder


def _encode(content: Any, part: Part, encoder: Any) -> Tensor:
    from controlkit.images import as_pictures

    model = load_encoder(encoder)
    return _answer(model, _processor(model)(as_pictures(content), return_tensors="pt")["pixel_values"], part)


def _answer(model: Any, pixels: Tensor, part: Part) -> Tensor:
    parameter = next(model.parameters())
    with torch.no_grad():
        output = model(pixels.to(parameter.device, parameter.dtype), output_hidden_states=True)
    if part == "pooled":
        answer = getattr(output, "image_embeds", None)
        if answer is None:
            raise ParameterError(
                "encoder", found=f"a {type(model).__name__}, which has no projection", expected=_EXPECTED
            )
    else:
        answer = output.last_hidden_state if part == "last" else output.hidden_states[-2]
    return cast(Tensor, answer).float().cpu()


@lru_cache(maxsize=2)
def _load(source: Any, subfolder: str) -> Any:
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingExtra(
            "transformers", found="not installed", fix="Run: pip install transformers, or give an embedding."
        ) from error
    try:
        model, info = cast(
            tuple[Any, dict[str, Any]],
            CLIPVisionModelWithProjection.from_pretrained(
                source, subfolder=subfolder, output_loading_info=True
            ),
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise _refused(source, f"which cannot be loaded ({reason[:120]})") from error
    random = [*(info.get("missing_keys") or ()), *(info.get("mismatched_keys") or ())]
    # Up to 4.30 the numbers 0, 1, 2, ... were among the weights, and nothing is drawn for them.
    random = [name for name in random if "position_ids" not in str(name)]
    if random:  # transformers would only warn, and leave these as they were drawn
        raise _refused(source, f"which lacks weights such as {random[0]}")
    return model.eval().requires_grad_(False)


def _refused(source: Any, why: str) -> ParameterError:
    return ParameterError(
        "encoder",
        found=f"{source!s}, {why}",
        expected=_EXPECTED,
        fix="Give a folder that holds one, or an embedding in place of the picture.",
    )


def _processor(model: Any) -> Any:
    import transformers

    # Newer versions have one that resizes by Pillow and one by torchvision, with other numbers.
    kind: Any = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    size = int(model.config.image_size)
    return kind(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
