"""How are the weights updated? Muon for matrices, AdamW for the rest, averages, and a schedule by the clock.

Muon: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon; the update's root mean square is
brought to that of AdamW as in Liu et al. (2025), arXiv:2502.16982, so that both share one learning rate.
A convolution counts as the matrix (out, in * height * width).

bfloat16 pays only where the processor has instructions for it; emulated, it is ten times slower.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

HAS_BFLOAT16 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def autocast() -> torch.autocast:
    """bfloat16 for the matrix products of a training step, float32 where that is faster."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest matrix with orthogonal rows or columns."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1.0 - group["momentum"])
                update = param.grad.lerp(buffer, group["momentum"]).flatten(1)
                by_shape[tuple(update.shape)].append((param, update))
            for (rows, columns), pairs in by_shape.items():
                size = 0.2 * math.sqrt(max(rows, columns))
                updates = _orthogonal(torch.stack([update for _, update in pairs]))
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1.0 - group["lr"] * group["weight_decay"])
                    param.add_(update.reshape(param.shape), alpha=-group["lr"] * size)


def _orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of (n, rows, columns) towards 1: Newton and Schulz."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x.to(torch.bfloat16) if HAS_BFLOAT16 else x.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.mT).float()


def optimizers(model: nn.Module, lr: float, *, weight_decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """Muon for every trainable matrix and convolution but embeddings, AdamW for the rest."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices, others = [], []
    for param in model.parameters():
        if param.requires_grad:
            is_matrix = param.ndim >= 2 and id(param) not in embeddings and min(param.flatten(1).shape) >= 8
            (matrices if is_matrix else others).append(param)
    return [
        Muon(matrices, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


class Average:
    """Exponential moving average of a model's parameters; young averages forget faster."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.values = {k: v.detach().clone() for k, v in model.named_parameters() if v.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, param in model.named_parameters():
            if name in self.values:
                self.values[name].lerp_(param, 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, param in model.named_parameters():
            if name in self.values:
                param.copy_(self.values[name])


class Clock:
    """A training budget in seconds; the learning rate warms up, stays, and falls to zero with it.

    Args:
        seconds: The budget.
        spent: Seconds that an interrupted run had used.
        decay: Share of the budget, at its end, over which the rate falls.
    """

    def __init__(self, seconds: float, spent: float = 0.0, decay: float = 0.5):
        self.seconds = seconds
        self.decay = decay
        self.begin = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self.begin

    @property
    def over(self) -> bool:
        return self.spent >= self.seconds

    def factor(self, step: int, warmup: int = 100, spent: float | None = None) -> float:
        left = max(0.0, 1.0 - (self.spent if spent is None else spent) / self.seconds)
        tail = 0.5 - 0.5 * math.cos(math.pi * min(1.0, left / self.decay))
        return min(1.0, (step + 1) / warmup) * max(tail, 0.01)


def set_rates(opts: list[torch.optim.Optimizer], base: float, factor: float) -> None:
    for optimizer in opts:
        for group in optimizer.param_groups:
            group["lr"] = base * factor
