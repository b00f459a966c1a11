"""The pictures that an IP-Adapter is bound to, as embeddings: read once, when they are bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from controlkit.adapters.ip_adapter.config import IPAdapterConfig
from controlkit.errors import HintError, ParameterError
from controlkit.vision import blank_embedding, embedding_of, load_encoder

_HUB = "h94/IP-Adapter"
_PUBLISHED = {
    ("pooled", 1024): "models/image_encoder",
    ("penultimate", 1280): "models/image_encoder",
    ("pooled", 1280): "sdxl_models/image_encoder",
    ("penultimate", 1664): "sdxl_models/image_encoder",
}
"""By what is read and how wide it is: the OpenCLIP ViT-H and ViT-bigG that the published ones go with."""


@dataclass(frozen=True, eq=False)
class BoundImages:
    """Embeddings of the pictures for each prompt.

    Args:
        embedding: (prompts, pictures, dim) or (prompts, pictures, tokens, dim), float32.
        unconditional: The same for the unconditional half; 1 prompt where it serves all.
        notes: What was done to read them.
    """

    embedding: Tensor
    unconditional: Tensor
    notes: tuple[str, ...]


def read_images(
    content: Any, unconditional: Any, encoder: Any, config: IPAdapterConfig, what: str
) -> BoundImages:
    """Read what ``IPAdapter.on`` is given.

    Raises:
        HintError: A picture or an embedding cannot be used.
        ParameterError: There is no encoder, or it does not fit.
    """
    dims = 2 if config.reads == "pooled" else 3
    pair = isinstance(content, tuple) and len(content) == 2 and _is_embedding(content[0], dims, config)
    if pair and unconditional is None and isinstance(content[1], Tensor):
        content, unconditional = content
    flat, prompts, given = _flat(content, dims, config, what)
    model = None if given else _encoder(config, encoder, what)
    rows = embedding_of(flat, config.reads, model, dim=config.embedding_dim, what=what)
    if prompts is None:
        prompts = len(rows)
    if len(rows) % prompts or (not given and isinstance(flat, list) and len(flat) < len(rows)):
        raise HintError(
            f"{what}: image",
            found=f"{len(rows)} pictures in lists that tell of another number",
            expected="one picture in each place of a list",
            fix="Split batches: give each picture by itself.",
            code="CK-H17",
        )
    notes: list[str] = []
    if unconditional is not None:
        nothing = _unconditional(unconditional, rows, dims, config, what)
    elif dims == 2:
        nothing = torch.zeros_like(rows[:1])
    elif model is not None:
        nothing = blank_embedding(config.reads, model)
    else:
        nothing = torch.zeros_like(rows[:1])
        notes.append("unconditional embedding: zeros, as none was given (it was trained with an encoder's)")
    embedding = rows.unflatten(0, (prompts, -1))
    pictures = embedding.shape[1]
    if len(nothing) == 1:
        nothing = nothing.expand(pictures, *nothing.shape[1:])
    if pictures > 1:
        notes.append(f"{pictures} pictures for each prompt")
    return BoundImages(embedding, nothing.unflatten(0, (-1, pictures)), tuple(notes))


def _flat(content: Any, dims: int, config: IPAdapterConfig, what: str) -> tuple[Any, int | None, bool]:
    """One embedding tensor or one list of pictures; for how many prompts; and whether it is the former."""
    if isinstance(content, Tensor) and content.ndim == dims + 1 and _is_embedding(content, dims, config):
        return content.flatten(0, 1), content.shape[0], True
    if isinstance(content, Tensor) and content.ndim < 3 and content.ndim != dims:
        if content.ndim == dims - 1 and content.shape[-1] == config.embedding_dim:
            return content.unsqueeze(0), 1, True
        raise HintError(
            f"{what}: image",
            found=f"a tensor of shape {tuple(content.shape)}",
            expected=f"an embedding (n, {'' if dims == 2 else 'tokens, '}{config.embedding_dim}), or pictures"
            " (n, 3, H, W)",
            fix=f"Give the image encoder's {config.reads} answer.",
            code="CK-H17",
        )
    if not isinstance(content, list | tuple):
        return content, None, _is_embedding(content, dims, config)
    entries = list(cast("list[Any]", content))
    nested = [isinstance(entry, list | tuple) for entry in entries]
    lengths = {len(entry) if inner else 1 for entry, inner in zip(entries, nested, strict=True)}
    if any(nested) and (not all(nested) or len(lengths) > 1 or 0 in lengths):
        raise HintError(
            f"{what}: image",
            found=f"lists with {', '.join(map(str, sorted(lengths)))} pictures"
            if all(nested)
            else "pictures and lists of pictures, mixed",
            expected="a list of pictures, one per prompt; or a list for each prompt, all of one length",
            fix="Give every prompt the same number of pictures.",
            code="CK-H17",
        )
    flat = [picture for entry in entries for picture in entry] if any(nested) else entries
    single = [_one(entry, dims) for entry in flat]
    if flat and all(entry is not None for entry in single):
        tensors = cast("list[Tensor]", single)
        if len({tensor.shape for tensor in tensors}) > 1:
            raise HintError(
                f"{what}: embedding",
                found=f"shapes {', '.join(str(tuple(tensor.shape[1:])) for tensor in tensors)}",
                expected="one shape",
                code="CK-H17",
            )
        return torch.cat(tensors), len(entries), True
    return flat, len(entries) if any(nested) else None, False


def _is_embedding(content: Any, dims: int, config: IPAdapterConfig) -> bool:
    """Whether a tensor holds embeddings; with one dimension more several pictures, where that is no batch."""
    if not isinstance(content, Tensor):
        return False
    several = dims == 2 and content.ndim == 3 and content.shape[-1] == config.embedding_dim
    return content.ndim == dims or several


def _one(entry: Any, dims: int) -> Tensor | None:
    """An entry of a list as the embedding of one picture, (1, ...); None: it is a picture."""
    if not isinstance(entry, Tensor):
        return None
    if entry.ndim == dims - 1:
        return entry.unsqueeze(0)
    return entry if entry.ndim == dims and entry.shape[0] == 1 else None


def _unconditional(given: Any, rows: Tensor, dims: int, config: IPAdapterConfig, what: str) -> Tensor:
    is_tensor = isinstance(given, Tensor)
    if is_tensor and given.ndim == dims + 1:
        given = given.flatten(0, 1)
    if not is_tensor or given.ndim != dims:
        raise HintError(
            f"{what}: unconditional",
            found=f"shape {tuple(given.shape)}" if is_tensor else f"a {type(given).__name__}",
            expected="an embedding, of the same shape as the picture's",
            code="CK-H17",
        )
    found = embedding_of(given, config.reads, None, dim=config.embedding_dim, what=f"{what}: unconditional")
    if len(found) not in (1, len(rows)) or found.shape[1:] != rows.shape[1:]:
        raise HintError(
            f"{what}: unconditional",
            found=f"shape {tuple(found.shape)}",
            expected=f"{tuple(rows.shape)}, or one row for all",
            code="CK-H17",
        )
    return found


def _encoder(config: IPAdapterConfig, encoder: Any, what: str) -> Any:
    if encoder is not None:
        return load_encoder(encoder)
    subfolder = _PUBLISHED.get((config.reads, config.embedding_dim))
    if subfolder is None:
        raise ParameterError(
            f"{what}: encoder",
            found=f"none, and no published one is {config.embedding_dim} wide",
            expected="the image encoder that it was trained with",
            fix="Give encoder=..., or an embedding in place of the picture.",
        )
    return load_encoder(_HUB, subfolder)
