"""Embeddings of pictures, against CLIP's preprocessing and network written out by hand."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import controlkit as ck
from controlkit.vision import Part, embedding_of, load_encoder
from tests import tiny

SIZE = 32
WIDTHS: dict[Part, int] = {"pooled": 24, "last": 16, "penultimate": 16}


def encoder(seed: int = 0, **changes: Any) -> Any:
    library = import_module("transformers")
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
        "projection_dim": 24,
    }
    config = library.CLIPVisionConfig(**{**settings, **changes})
    return tiny.randomize(library.CLIPVisionModelWithProjection(config), seed)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def seen(image: Image.Image) -> Tensor:
    """What CLIP sees of a picture: short side to its size, the middle square, normalised."""
    scale = SIZE / min(image.size)
    small = image.resize(
        (max(SIZE, int(image.width * scale)), max(SIZE, int(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (small.width - SIZE) // 2, (small.height - SIZE) // 2
    square = small.crop((left, top, left + SIZE, top + SIZE))
    values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return ((values - mean) / deviation)[None]


@torch.no_grad()
def by_hand(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    vision = model.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))
    states = [hidden]
    for layer in vision.encoder.layers:
        output = layer(states[-1], attention_mask=None)
        states.append(output[0] if isinstance(output, tuple) else output)
    pooled = model.visual_projection(vision.post_layernorm(states[-1][:, 0]))
    return {"pooled": pooled, "last": states[-1], "penultimate": states[-2]}


@pytest.mark.parametrize("part", WIDTHS)
@pytest.mark.parametrize("size", [(48, 80), (80, 48), (32, 32)])
def test_embeddings_are_those_of_clip(part: Part, size: tuple[int, int]) -> None:
    model, image = encoder(), picture(*size)
    found = embedding_of(image, part, model, dim=WIDTHS[part], what="test")
    expected = by_hand(model, seen(image))[part]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    assert not found.requires_grad
    if part == "pooled":  # not normalised
        assert (found.norm(dim=-1) - 1).abs().min() > 1e-2


def test_every_way_to_give_a_picture_is_the_same() -> None:
    model, image = encoder(), picture(48, 80)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255

    def embed(content: Any) -> Tensor:
        return embedding_of(content, "pooled", model, dim=24, what="test")

    expected = embed(image)
    for content in (array, tensor, [image], array.astype(np.float32) / 255):
        assert torch.equal(embed(content), expected)
    both = embed([image, picture(40, 40, seed=1)])
    assert both.shape == (2, 24)
    torch.testing.assert_close(both[:1], expected)
    assert not torch.equal(both[0], both[1])


def test_an_embedding_is_taken_as_it_is_and_needs_no_encoder() -> None:
    given = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    found = embedding_of(given, "pooled", None, dim=24, what="test")
    assert torch.equal(found, given.detach().float())
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert embedding_of(given[0], "pooled", None, dim=24, what="test").shape == (1, 24)
    tokens = torch.randn(1, 17, 16)
    assert torch.equal(embedding_of(tokens, "last", None, dim=16, what="test"), tokens)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.zeros(2, 23), r"the control: embedding; found shape \(2, 23\); needed \(n, 24\)"),
        (torch.zeros(0, 24), r"found shape \(0, 24\)"),
        (torch.full((1, 24), torch.nan), "NaN or infinity"),
    ],
)
def test_an_embedding_that_does_not_fit_is_refused(content: Tensor, match: str) -> None:
    with pytest.raises(ck.HintError, match=match):
        embedding_of(content, "pooled", None, dim=24, what="the control")


def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    library = import_module("transformers")
    image = picture(32, 32)
    with pytest.raises(ck.ParameterError, match="24 wide; needed 768"):
        embedding_of(image, "pooled", encoder(), dim=768, what="test")
    with pytest.raises(ck.ParameterError, match="a NoneType; needed a CLIP vision model"):
        embedding_of(image, "pooled", None, dim=24, what="test")
    plain = library.CLIPVisionModel(encoder().config)
    with pytest.raises(ck.ParameterError, match="CLIPVisionModel, which has no projection"):
        embedding_of(image, "pooled", plain, dim=24, what="test")
    assert embedding_of(image, "last", plain, dim=16, what="test").shape == (1, 17, 16)
    with pytest.raises(ck.ParameterError, match="cannot be loaded"):
        embedding_of(image, "pooled", tmp_path, dim=24, what="test")


def test_a_folder_is_loaded_once_and_never_half_filled(tmp_path: Path) -> None:
    model, image = encoder(), picture(48, 48)
    model.save_pretrained(tmp_path / "whole")
    expected = embedding_of(image, "pooled", model, dim=24, what="test")
    folder = str(tmp_path / "whole")
    assert torch.equal(embedding_of(image, "pooled", folder, dim=24, what="test"), expected)
    assert load_encoder(folder) is load_encoder(folder)
    import_module("transformers").CLIPVisionModel(model.config).save_pretrained(tmp_path / "part")
    with pytest.raises(ck.ParameterError, match="lacks weights such as visual_projection"):
        load_encoder(str(tmp_path / "part"))
