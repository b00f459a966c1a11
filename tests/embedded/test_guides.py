"""The networks that guide: what they read from noisy latents of scenes none of them has seen, and what that
does to pictures made without a prompt."""

from typing import Any

import numpy as np
import pytest
import torch

import controlkit as ck
import controlkit.embedded as embedded
from controlkit.embedded.world import KINDS
from controlkit.evaluation import load_judge
from controlkit.evaluation.adherence import commonest
from controlkit.evaluation.clip import load_judge_clip
from controlkit.evaluation.guidance import distinct_scenes, sample

COUNT = 48
LOW, HIGH = 150, 999
"""Times: little noise, and next to nothing but noise."""


@pytest.fixture(scope="module")
def pipe() -> Any:
    return embedded.pipeline()


@pytest.fixture(scope="module")
def scenes() -> list[embedded.Scene]:
    return distinct_scenes(COUNT)


@pytest.fixture(scope="module")
def noisy(pipe: Any, scenes: list[embedded.Scene]) -> dict[int, torch.Tensor]:
    pictures = pipe.image_processor.preprocess([s.image for s in scenes])
    with torch.no_grad():
        latents = pipe.vae.encode(pictures).latent_dist.mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    alpha_bar = pipe.scheduler.alphas_cumprod
    return {t: alpha_bar[t].sqrt() * latents + (1 - alpha_bar[t]).sqrt() * noise for t in (LOW, HIGH)}


def times(t: int) -> torch.Tensor:
    return torch.full((COUNT,), t)


@torch.no_grad()
def kinds_read(x: torch.Tensor, t: int, scenes: list[embedded.Scene]) -> float:
    wanted = [commonest(s.labels) - 1 for s in scenes]
    found = embedded.load("classifier")(x, times(t)).argmax(1)
    return float((found == torch.tensor(wanted)).float().mean())


@torch.no_grad()
def captions_found(x: torch.Tensor, t: int, scenes: list[embedded.Scene]) -> float:
    towers = embedded.clip()
    image, text = towers.encode_image(x, times(t)), towers.encode_text([s.caption for s in scenes])
    return float(((image @ text.mT).argmax(1) == torch.arange(COUNT)).float().mean())


@torch.no_grad()
def solids_found(x: torch.Tensor, t: int, scenes: list[embedded.Scene]) -> float:
    wanted = torch.from_numpy(np.stack([s.labels[::2, ::2] for s in scenes]))
    found = embedded.segmentation()(x, times(t)).argmax(1)
    solid = wanted > 0
    return float((found == wanted)[solid].float().mean())


@pytest.mark.parametrize(
    ("read", "least", "chance"),
    [(kinds_read, 0.9, 0.45), (captions_found, 0.75, 0.15), (solids_found, 0.8, 0.3)],
)
def test_little_noise_leaves_it_readable_and_pure_noise_does_not(
    read: Any, least: float, chance: float, noisy: dict[int, torch.Tensor], scenes: list[embedded.Scene]
):
    assert read(noisy[LOW], LOW, scenes) > least
    assert read(noisy[HIGH], HIGH, scenes) < chance


def test_shapes_types_and_lengths():
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 900])
    classifier, towers, segmenter = embedded.load("classifier"), embedded.clip(), embedded.segmentation()
    assert isinstance(classifier, ck.NoisyClassifier)
    assert classifier(x, t).shape == (2, len(KINDS))
    assert segmenter(x, t).shape == (2, len(embedded.LABELS), 64, 64)
    image, text = towers.encode_image(x, t), towers.encode_text(["a red cube on a sand floor"] * 3)
    assert (image.shape, text.shape) == ((2, 128), (3, 128))
    assert torch.allclose(torch.cat([image, text]).norm(dim=-1), torch.ones(5))
    assert 0.01 <= towers.temperature < 0.5
    for network in (classifier, towers, segmenter):
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("texts", ["a cube", [], [1]])
def test_something_else_than_texts_is_refused(texts: Any):
    with pytest.raises(ck.ParameterError, match="a list of at least one text"):
        embedded.clip().encode_text(texts)


def test_the_clip_that_measures_finds_the_captions_of_rendered_pictures(scenes: list[embedded.Scene]):
    judge, captions = load_judge_clip(), [s.caption for s in scenes]
    pictures = [s.image for s in scenes]
    assert judge.retrieval(pictures, captions) > 0.7
    assert judge.retrieval(pictures[1:] + pictures[:1], captions) < 0.1
    with pytest.raises(ValueError, match="one of its own per picture"):
        judge.retrieval(pictures, [captions[0]] * COUNT)


@pytest.mark.slow
def test_every_way_of_guidance_makes_what_was_wanted_likelier(pipe: Any, scenes: list[embedded.Scene]):
    """Eight pictures of each way, ten steps, judged by networks that did not guide."""
    some = scenes[:8]
    seeds = [s.seed for s in some]
    judge, likeness = load_judge(), load_judge_clip()
    free = sample(pipe, seeds, steps=10)

    wanted = torch.arange(8) % len(KINDS)
    made = sample(
        pipe, seeds, ck.guidance.classifier(embedded.load("classifier")), wanted, steps=10, scale=20.0
    )

    def right(images: list[Any]) -> int:
        return sum(
            commonest(k) == w + 1 for k, w in zip(judge.read(images).kinds, wanted.tolist(), strict=True)
        )

    assert right(made) >= right(free) + 3

    captions = [s.caption for s in some]
    towers = embedded.clip()
    made = sample(pipe, seeds, ck.guidance.text(towers), captions, steps=10, scale=5.0)
    texts = likeness.captions(captions)
    gain = (likeness.pictures(made) * texts).sum(1) - (likeness.pictures(free) * texts).sum(1)
    assert gain.mean() > 0.2

    pictures = [s.image for s in some]  # encoded by the pipeline's own autoencoder
    made = sample(pipe, seeds, ck.guidance.image(towers), pictures, steps=10, scale=5.0)
    goals = likeness.pictures(pictures)
    gain = (likeness.pictures(made) * goals).sum(1) - (likeness.pictures(free) * goals).sum(1)
    assert gain.mean() > 0.2

    maps = torch.from_numpy(np.stack([s.labels[::2, ::2] for s in some])).long()
    made = sample(pipe, seeds, ck.guidance.segmentation(embedded.segmentation()), maps, steps=10, scale=10.0)
    solid = maps.numpy() > 0

    def agreement(images: list[Any]) -> float:
        return float((judge.read(images).kinds == maps.numpy())[solid].mean())

    assert agreement(made) > 2 * agreement(free)


def test_phi_of_the_true_target_beats_that_of_another(noisy: dict[int, torch.Tensor], scenes: Any):
    x, t = noisy[LOW], times(LOW)
    maps = torch.from_numpy(np.stack([s.labels[::2, ::2] for s in scenes])).long()
    towers = embedded.clip()
    texts = towers.encode_text([s.caption for s in scenes])
    labels = ck.guidance.segmentation(embedded.segmentation())
    for phi, y in ((labels, maps), (ck.guidance.text(towers), texts)):
        gap = phi(x, y, t) - phi(x, y.roll(1, 0), t)
        assert gap.shape == (COUNT,)
        assert (gap > 0).float().mean() > 0.9
