"""Is each ready-made function what it says: a differentiable log-probability, highest at its target?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.guidance.cases import CASES, SIDE, Case, drawn

TIMES = torch.tensor([300.0])
WITH_BEST = [name for name, case in CASES.items() if case.best is not None]


def gradient(phi: object, x: Tensor, y: object, t: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    values = phi(x, y, t)  # pyright: ignore[reportCallIssue]
    return values.detach(), torch.autograd.grad(values.sum(), x)[0]


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_agrees_with_finite_differences(name: str) -> None:
    case = CASES[name]
    phi = case.make(torch.float64)
    y, x = phi.read(case.y), drawn(case.channels, 5)
    value, found = gradient(phi, x, y, TIMES)
    assert value.shape == (1,)
    assert value.dtype == torch.float64
    assert float(found.abs().max()) > 1e-9
    # The published classifiers' norms compute in float32 whatever their weights are.
    step, tolerance = (3e-2, 1e-3) if name == "classifier" else (1e-6, 1e-6)
    for seed in (1, 2, 3):
        direction = drawn(case.channels, 100 + seed)
        with torch.no_grad():
            ahead, behind = phi(x + step * direction, y, TIMES), phi(x - step * direction, y, TIMES)
        slope = float((ahead - behind) / (2 * step))
        expected = float((found * direction).sum())
        assert abs(slope - expected) <= tolerance * float(found.norm() * direction.norm()) + 1e-7


@pytest.mark.parametrize("name", CASES)
def test_a_step_along_the_gradient_raises_it(name: str) -> None:
    case = CASES[name]
    phi = case.make(torch.float32)
    x = drawn(case.channels, 7).float()
    before, found = gradient(phi, x, phi.read(case.y), TIMES)
    after = phi(x + 0.02 * SIDE / 32 * found / found.norm(), phi.read(case.y), TIMES)
    assert before.dtype == torch.float32
    assert float(after) > float(before)


@pytest.mark.parametrize("name", WITH_BEST)
def test_it_is_highest_at_the_target(name: str) -> None:
    case = CASES[name]
    assert case.best is not None
    phi, best = case.make(torch.float64), case.best()
    y = phi.read(case.y)
    # What reads noisy pictures is given the target as it would be at no noise.
    if "pair" in name or "NoisyClip" in name:
        y = best
    top = float(phi(best, y, TIMES))
    others = [drawn(3, seed) for seed in range(6)] + [best.flip(3)]
    others += [best + amount * drawn(3, 9) for amount in (0.1, 1.0)]
    different = [float(phi(other, y, TIMES)) for other in others]
    if "color" in name or name == "region":  # what does not count may differ
        different = [value for value in different if abs(value - top) > 1e-9]
        assert len(different) > 5
    assert top > max(different)


@pytest.mark.parametrize("name", CASES)
def test_pictures_do_not_see_each_other(name: str) -> None:
    case = CASES[name]
    phi = case.make(torch.float64)
    x, times = drawn(case.channels, 11, images=3), torch.tensor([100.0, 500.0, 900.0])
    y = phi.read(case.y)
    together = phi(x, y, times)
    apart = torch.cat([phi(x[i : i + 1], y, times[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)
    assert len({round(float(value), 9) for value in together}) == 3


def test_a_target_may_be_read_twice() -> None:
    """Guidance is a dataclass that may be copied with another scale."""
    for name, case in CASES.items():
        phi = case.make(torch.float32)
        once = phi.read(case.y)
        x = drawn(case.channels, 12).float()
        assert torch.equal(phi(x, phi.read(once), TIMES), phi(x, once, TIMES)), name


def test_edges_tell_where_lines_are() -> None:
    """On a vertical step the map with that line beats the one whose line is elsewhere, and the empty one."""
    from controlkit.guidance import edges

    x = torch.full((1, 3, 16, 16), -0.8, dtype=torch.float64)
    x[..., 8:] = 0.8
    here, there, nowhere = (torch.zeros(1, 1, 16, 16) for _ in range(3))
    here[..., 8], there[..., 3] = 1, 1
    values = [float(edges()(x, y, TIMES)) for y in (here, nowhere, there)]
    assert values[0] > values[1] > values[2]


def test_weights_and_deviations_mean_what_they_say() -> None:
    from controlkit.guidance import color, region, segmentation, total

    x = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)  # half gray, all of it 0.5 from black
    black = torch.zeros(1, 3, SIDE, SIDE)
    table = [
        (color(sigma=0.5, weight=1), "black", -3 * 0.25 / (2 * 0.25)),
        (color(sigma=0.5, weight=2), black, -2 * 3 * 0.25 / (2 * 0.25)),
        (region(torch.ones(1, 1, 4, 4), sigma=0.25, weight=1), black, -3 * 0.25 / (2 * 0.0625)),
        (segmentation(sigma=1, weight=8), black, -8 * 3 * 0.25 / 2),
    ]
    for phi, y, expected in table:
        assert float(phi(x, phi.read(y), TIMES)) == pytest.approx(expected)
    both = total((table[0][0], "black"), (table[2][0], black, 0.5))
    assert float(both(x, None, TIMES)) == pytest.approx(table[0][2] + 0.5 * table[2][2])


def test_a_network_s_label_probabilities_are_averaged_over_what_counts() -> None:
    from controlkit.guidance import segmentation

    logits = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    logits[0, 1, 0, 0] = 3.0
    phi = segmentation(lambda x: logits + 0 * x.sum(), weight=1)
    y = phi.read(torch.tensor([[1, -1], [255, -1]]))
    expected = -float(torch.tensor(-3.0).exp().log1p())
    assert float(phi(torch.zeros(1, 3, 2, 2), y, TIMES)) == pytest.approx(expected)


def test_depth_is_compared_up_to_scale_and_shift_but_not_sign() -> None:
    from controlkit.guidance import depth

    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    x = (0.3 * ramp - 0.7).expand(1, 3, 16, 16)
    phi = depth(lambda x: 5 * x[:, 0] + 2, weight=1, sigma=1)
    assert float(phi(x, ramp, TIMES)) == pytest.approx(0, abs=1e-4)
    assert float(phi(x, 1 - ramp, TIMES)) == pytest.approx(-2, abs=1e-3)


def test_every_case_is_named() -> None:
    import controlkit as ck

    makers = set(ck.guidance.__all__) - {"Guidance", "Likelihood"}
    assert makers == {name.replace(",", " ").split()[0] for name in CASES}
    assert isinstance(next(iter(CASES.values())), Case)
