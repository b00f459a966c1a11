"""A mixture of Gaussians, of which everything that guidance needs is known in closed form.

x_0 ~ Σ_k w_k N(m_k, s_k² I), and p(y | k) is a table. After noising, component k is
N(a m_k, (a² s_k² + 1 - a²) I), a² = ᾱ; so the exact noise prediction is that of Tweedie's formula,
ε = -sqrt(1 - ᾱ) ∇ ln p(x_t), and ln p(y | x_t) a difference of two logarithms of sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Pictures of (channels, 1, 1), channels as many as the means have entries.

    Args:
        weights: (k,), sum to 1.
        means: (k, channels).
        deviations: (k,).
    """

    weights: Tensor
    means: Tensor
    deviations: Tensor

    def log_density(self, x: Tensor, alpha_bar: float) -> Tensor:
        """ln p(x_t) up to a constant that is the same for all mixtures, (rows,)."""
        flat = x.flatten(1)[:, None]
        means, deviations = self.means.to(flat), self.deviations.to(flat)
        variances = alpha_bar * deviations**2 + 1 - alpha_bar
        squares = ((flat - math.sqrt(alpha_bar) * means) ** 2).sum(-1)
        logs = self.weights.to(flat).log() - squares / (2 * variances)
        return torch.logsumexp(logs - 0.5 * means.shape[1] * variances.log(), dim=1)

    def noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        """The exact noise prediction of x_t, the shape of ``x``."""
        flat = x.flatten(1)[:, None]
        means, deviations = self.means.to(flat), self.deviations.to(flat)
        variances = alpha_bar * deviations**2 + 1 - alpha_bar
        away = flat - math.sqrt(alpha_bar) * means
        logs = self.weights.to(flat).log() - (away**2).sum(-1) / (2 * variances)
        share = torch.softmax(logs - 0.5 * means.shape[1] * variances.log(), dim=1)[..., None]
        score = -(share * away / variances[:, None]).sum(1)
        return (-math.sqrt(1 - alpha_bar) * score).reshape(x.shape)

    def given(self, likelihood: Tensor) -> Mixture:
        """The mixture of p(x_0 | y), from p(y | k), (k,)."""
        joint = self.weights * likelihood
        return Mixture(joint / joint.sum(), self.means, self.deviations)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every channel of x_0."""
        weights = self.weights[:, None]
        mean = (weights * self.means).sum(0)
        square = (weights * (self.means**2 + self.deviations[:, None] ** 2)).sum(0)
        return mean, (square - mean**2).sqrt()


PRIOR = Mixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[1.0, -0.8, 0.6], [-0.9, 0.7, 0.5], [0.5, 0.9, -1.1]], dtype=torch.float64),
    torch.tensor([0.35, 0.5, 0.25], dtype=torch.float64),
)
LIKELIHOOD = torch.tensor([0.1, 0.7, 0.6], dtype=torch.float64)
"""p(y | k) of the y that is asked for."""
POSTERIOR = PRIOR.given(LIKELIHOOD)


def log_likelihood(x: Tensor, alpha_bar: float) -> Tensor:
    """ln p(y | x_t) = ln p(x_t | y) + ln p(y) - ln p(x_t), up to the constant ln p(y)."""
    return POSTERIOR.log_density(x, alpha_bar) - PRIOR.log_density(x, alpha_bar)
