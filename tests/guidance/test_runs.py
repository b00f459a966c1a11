"""Do the ready-made functions run in a pipeline: every one, in inference mode, for several prompts?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests import tiny
from tests.guidance.cases import CASES, PALETTE, Clean, Net, Pair, classifier, labels, left_half, picture

g = ck.guidance
TWO = [picture(1), picture(2)]


def encode(pixels: Tensor) -> Tensor:
    """A stand-in for a VAE's encoder: (n, 3, H, W) to (n, 4, H/8, W/8)."""
    small = torch.nn.functional.avg_pool2d(pixels, 8)
    return torch.cat((small, small.mean(1, keepdim=True)), dim=1)


RUNS: dict[str, Any] = {
    "classifier": lambda: (g.classifier(classifier()), [1, 3]),
    "classifier of pixels": lambda: (g.classifier(Clean(3, 6, pool=True), sees="image"), [2, 1]),
    "text": lambda: (g.text(Pair()), ["a cube", "a cone"]),
    "image": lambda: (g.image(Pair(), encode=encode), TWO),
    "image, content": lambda: (g.image(Pair(), match="content", encode=encode), TWO),
    "segmentation": lambda: (g.segmentation(Net(4, 3, pool=False)), [labels(), labels().T.copy()]),
    "segmentation by colour": lambda: (g.segmentation(palette=PALETTE), [labels(), labels().T.copy()]),
    "edges": lambda: (g.edges(), TWO),
    "depth": lambda: (g.depth(lambda x: -x.mean(1)), TWO),
    "color": lambda: (g.color(mask=left_half()), ["red", "blue"]),
    "region": lambda: (g.region(left_half()), TWO),
    "total": lambda: (g.total((g.edges(), TWO), (g.color(), ["red", "blue"], 0.5)), None),
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


def latents(
    pipe: Any, *controls: Any, prompts: tuple[str, ...] = ("a cube", "a cone"), each: int = 1
) -> Tensor:
    start = torch.randn(len(prompts) * each, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with ck.attach(pipe, *controls):
        return pipe(
            list(prompts),
            num_inference_steps=2,
            latents=start,
            num_images_per_prompt=each,
            output_type="latent",
        ).images


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_and_raises_its_own_value(name: str, pipe: Any) -> None:
    phi, y = RUNS[name]()
    guided = [latents(pipe, ck.Guidance(phi, y, scale=0.3 * sign, normalize=True)) for sign in (1, -1)]
    assert all(bool(torch.isfinite(one).all()) for one in guided)
    assert float((guided[0] - guided[1]).norm()) > 1e-3
    if "image" in name:  # its reference is noised, so that no value is the value
        return
    t = torch.zeros(2)
    with torch.no_grad():
        seen = pipe.vae.decode(torch.cat(guided) / pipe.vae.config.scaling_factor).sample
    seen = torch.cat(guided) if phi.sees == "noisy" else seen
    read = None if y is None else phi.read(y)
    better, worse = (phi(part, read, t).mean() for part in seen.chunk(2))
    assert float(better) > float(worse)


@pytest.mark.parametrize("name", ["classifier", "image", "segmentation", "color", "total"])
def test_each_prompt_gets_its_own_target(name: str, pipe: Any) -> None:
    """One target per prompt serves all its pictures: another second one changes the second's alone."""
    if name == "total":
        make = lambda targets: ck.Guidance(g.total((g.edges(), targets)), scale=3)  # noqa: E731
        first, second = TWO
    else:
        phi, (first, second) = RUNS[name]()
        make = lambda targets: ck.Guidance(phi, targets, scale=0.2, normalize=True)  # noqa: E731
    both = latents(pipe, make([first, second]), each=2)
    same = latents(pipe, make([first, first]), each=2)
    assert torch.allclose(both[:2], same[:2], atol=1e-5)
    assert not torch.allclose(both[2:], same[2:], atol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_counts_that_do_not_fit_are_refused_before_the_first_step(name: str, pipe: Any) -> None:
    if name == "total":
        guidance = ck.Guidance(g.total((g.edges(), [picture(1)] * 2)))
    else:
        phi, targets = RUNS[name]()
        guidance = ck.Guidance(phi, targets)
    with pytest.raises(ck.BatchMismatch, match=r"2 .* for 3 pictures"):
        latents(pipe, guidance, prompts=("a", "b", "c"))


@pytest.mark.parametrize("name", ["classifier of pixels", "text", "image", "segmentation", "edges", "region"])
def test_a_run_in_inference_mode_is_the_same(name: str, pipe: Any) -> None:
    plain = latents(pipe, ck.Guidance(*RUNS[name](), scale=0.2, normalize=True))
    phi, y = RUNS[name]()
    with torch.inference_mode():
        guidance = ck.Guidance(phi, y, scale=0.2, normalize=True)
        inside = latents(pipe, guidance)
    assert torch.equal(plain, inside)


def test_masks_are_counted_too(pipe: Any) -> None:
    masks = [left_half()] * 2
    for phi, y in ((g.region(masks), picture(1)), (g.color(mask=masks), "red")):
        with pytest.raises(ck.BatchMismatch, match="mask"):
            latents(pipe, ck.Guidance(phi, y), prompts=("a", "b", "c"))


def test_a_classifier_of_other_channels_is_refused_when_attached(pipe: Any) -> None:
    with (
        pytest.raises(ck.BaseMismatch, match="3 channels"),
        ck.attach(pipe, ck.Guidance(g.classifier(classifier(3)), 1)),
    ):
        pass


def test_a_reference_for_noisy_latents_needs_an_encoder(pipe: Any) -> None:
    from dataclasses import replace

    phi, run = g.image(Pair()), replace(_run_of(pipe), encode=None)
    y = phi.read(picture())
    with pytest.raises(ck.NotApplicable, match="encode="):
        phi.bind("guidance", y, run)
    assert phi.bind("guidance", y, replace(run, encode=encode))


def _run_of(pipe: Any) -> Any:
    """What a run of the tiny pipeline says of itself."""
    found: list[Any] = []

    class Spy(ck.guidance.Likelihood):
        def bind(self, name: str, y: Any, run: Any) -> Any:
            found.append(run)
            return lambda seen, times, step: seen.sum((1, 2, 3))

    latents(pipe, ck.Guidance(Spy()))
    return found[0]


def test_the_noise_of_a_reference_is_the_same_within_a_step_and_another_in_the_next(pipe: Any) -> None:
    from dataclasses import replace

    from controlkit.contracts import Step

    run = replace(_run_of(pipe), encode=encode)
    phi = g.image(Pair())
    bound = phi.bind("image", phi.read(picture()), run)
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0)
    step = Step(0, 2, t[0], x, None, None, ("cond",), alpha_bar=0.5)
    first, again, later = bound(x, t, step), bound(x, t, step), bound(x, t, replace(step, index=1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_what_is_seen_of_the_prediction_counts_as_much_as_it_is_certain(pipe: Any) -> None:
    from controlkit.contracts import Step

    phi = g.color()
    bound = phi.bind("color", phi.read("red"), _run_of(pipe))
    x, t = torch.zeros(2, 3, 8, 8), torch.zeros(2)
    step = Step(0, 2, t[0], x, None, None, ("cond",), alpha_bar=0.25)
    torch.testing.assert_close(bound(x, t, step), 0.25 * phi(x, "red", t))


def test_a_sum_is_the_sum_of_its_gradients(pipe: Any) -> None:
    parts = [(g.color(), "red", 0.02), (g.region(left_half()), picture(1), 0.01)]
    one = latents(pipe, ck.Guidance(g.total(*parts)))
    several = latents(pipe, *(ck.Guidance(phi, y, scale=weight) for phi, y, weight in parts))
    torch.testing.assert_close(one, several, rtol=1e-5, atol=2e-5)


def test_a_plain_function_may_be_part_of_a_sum(pipe: Any) -> None:
    def dark(x: Tensor, y: float, t: Tensor) -> Tensor:
        return -y * x.mean((1, 2, 3))

    seen = latents(pipe, ck.Guidance(g.total((dark, 30.0), (g.color(), "red", 0.01))))
    assert bool(torch.isfinite(seen).all())
    assert not torch.equal(seen, latents(pipe, ck.Guidance(g.total((g.color(), "red", 0.01)))))


def test_every_function_of_the_cases_runs_here() -> None:
    assert {name.replace(",", " ").split()[0] for name in CASES} == {
        name.replace(",", " ").split()[0] for name in RUNS
    }
    assert isinstance(np.asarray(TWO[0]), np.ndarray)
