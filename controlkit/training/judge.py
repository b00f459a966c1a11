"""How is the judge trained? On rendered pictures and their exact labels, a few minutes.

Pictures are blurred, tinted and made noisy at random, so that the judge is not thrown by the slight
softness of a decoded picture.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from controlkit.evaluation.judge import Judge, JudgeNet
from controlkit.training.data import PART, Scenes
from controlkit.training.optim import Average, Clock, autocast, optimizers, set_rates

log = logging.getLogger(__name__)


def labelled_batch(
    scenes: Scenes, rng: np.random.Generator, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (n, 3, 128, 128) in [0, 1]; kinds and colours (n, 64, 64), 0 the floor; depth (n, 64, 64)."""
    images, kinds, colours, depths = [], [], [], []
    for _ in range(count):
        index = int(rng.integers(len(scenes)))
        part, row = divmod(index, PART)
        step = 1 if rng.random() < 0.5 else -1
        # the floor's entry is last: objects hold -1 for it, plus one
        table = np.concatenate([[[-1, -1]], scenes.objects[index]]).astype(np.int64) + 1
        instances = scenes.instances[part][row][::2, ::2][:, ::step]
        images.append(scenes.image[part][row][:, ::step])
        kinds.append(table[instances, 0])
        colours.append(table[instances, 1])
        depths.append(scenes.depth[part][row][:, ::step])
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0
    depth = F.avg_pool2d(torch.from_numpy(np.stack(depths)).float()[:, None] / 255.0, 2)[:, 0]
    return x.contiguous(), torch.from_numpy(np.stack(kinds)), torch.from_numpy(np.stack(colours)), depth


def disturb(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Soften, tint and make noisy at random; (n, 3, 128, 128) in [0, 1]."""
    if rng.random() < 0.6:
        x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), float(rng.random()))
    if rng.random() < 0.4:
        height = int(rng.integers(72, 128))
        x = F.interpolate(
            F.interpolate(x, size=height, mode="bilinear", antialias=True), size=128, mode="bilinear"
        )
    x = x * (1.0 + 0.04 * torch.randn(x.shape[0], 3, 1, 1))
    return (x + float(rng.uniform(0.0, 0.05)) * torch.randn_like(x)).clamp(0.0, 1.0)


def train_judge(
    scenes: Scenes, checkpoint: Path, *, seconds: float, lr: float = 2e-3, batch: int = 16
) -> Judge:
    """Train from nothing for a number of seconds; the averaged weights are written to `checkpoint`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = JudgeNet()
    average, opts = Average(net, 0.99), optimizers(net, lr)
    clock, step = Clock(seconds, decay=0.7), 0
    while not clock.over:
        x, kinds, colours, depth = labelled_batch(scenes, rng, batch)
        set_rates(opts, lr, clock.factor(step))
        with autocast():
            seen = net(disturb(x, rng))
        weight = torch.where(F.max_pool2d((kinds > 0).float()[:, None], 9, 1, 4)[:, 0] > 0, 1.0, 0.2)
        losses = [
            (weight * F.cross_entropy(seen.kind.float(), kinds, reduction="none")).mean(),
            (weight * F.cross_entropy(seen.colour.float(), colours, reduction="none")).mean(),
            10.0 * (weight * (seen.depth.float() - depth).abs()).mean(),
        ]
        torch.stack(losses).sum().backward()
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(net)
        step += 1
        if step % 50 == 0:
            log.info(
                "%4.0f s  step %5d  %s", clock.spent, step, [round(float(v.detach()), 4) for v in losses]
            )
    average.copy_to(net)
    torch.save(net.state_dict(), checkpoint)
    return Judge(net)
